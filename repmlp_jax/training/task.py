"""What the loop needs to know of a task."""

from pathlib import Path
from typing import Any, Protocol

import jax
from flax import nnx
from jax.typing import DTypeLike


class Task(Protocol):
    """Data, loss and scores of what is learned. It is made from the configuration, the mesh and a key.

    Attributes:
        feed: what compiles and feeds the training steps, as `feed.ResidentFeed` and `feed.StreamedFeed`.
        evaluator: what evaluates a model and compares two, as `evaluation.Evaluator`.
        scores: names of what is measured of a model.
        best: the score, higher is better, by which the best checkpoint is chosen.
        preprocessing: what is saved with a model.
        correct_dtype: of what `loss` counts as right: int32, or float32 where it is a share of each example.
    """

    feed: Any
    evaluator: Any
    scores: tuple[str, ...]
    best: str
    preprocessing: dict[str, Any]
    correct_dtype: DTypeLike

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model that is trained."""

    def result(self, model: nnx.Module) -> nnx.Module:
        """The part of the trained model that is saved, fused and evaluated."""

    def loss(self, model: nnx.Module, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean loss of a batch, and how many of its examples are right, in `correct_dtype`."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Name → scores that a model has to beat."""

    def draw(self, workdir: Path, model: nnx.Module) -> None:
        """Draws pictures of what the model does into the run's folder."""
