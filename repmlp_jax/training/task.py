"""The interface between the training loop and a task."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
from flax import nnx
from jax.typing import DTypeLike

from repmlp_jax.models.registry import create_model
from repmlp_jax.training.evaluation import Comparison


class Task(Protocol):
    """Data, loss and scores. A task is created from the configuration, the mesh and a key.

    Attributes:
        feed: compiles and feeds the training steps, like `feed.ResidentFeed` and `feed.StreamedFeed`.
        evaluator: evaluates a model and compares two, like `evaluation.Evaluator`.
        scores: names of the scores of a model.
        best: the score that selects the best checkpoint; higher is better.
        preprocessing: saved with a model.
        correct_dtype: dtype of the number of correct examples: int32, or float32 if an example may be partly correct.
    """

    feed: Any
    evaluator: Any
    scores: tuple[str, ...]
    best: str
    preprocessing: dict[str, Any]
    correct_dtype: DTypeLike

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model that is trained."""

    def result(self, model: nnx.Module) -> nnx.Module:
        """The part of the trained model that is saved, fused and evaluated; its class has to be registered."""
        return model

    def loss(self, model: nnx.Module, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean loss of a batch, and its number of correct examples in `correct_dtype`."""

    def baselines(self) -> dict[str, dict[str, float]]:
        """Name → scores that a model has to beat."""
        return {}

    def report(self, workdir: Path, comparison: Comparison) -> None:
        """Writes tables and pictures of the evaluation into the run's folder; only process 0 calls it."""

    def draw(self, workdir: Path, model: nnx.Module) -> None:
        """Draws pictures of the model's outputs into the run's folder."""


def stream_part(config) -> dict[str, Any]:
    """The arguments of `make_stream` and `evaluation_stream` that give each process its part of the batches."""
    return dict(process_index=jax.process_index(), process_count=jax.process_count(), workers=config.workers)


def check_crop_padding(config, image_size: Sequence[int]) -> None:
    """Raises ValueError if a random crop could miss the image."""
    if config.crop_padding >= min(image_size):
        raise ValueError(
            f"crop_padding={config.crop_padding} must be less than each side of the images, {tuple(image_size)}"
        )


class ConfiguredTask(Task):
    """A task that trains the model of its configuration."""

    _config: Any

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the configured model."""
        return create_model(self._config.model, rngs=rngs, **self._config.model_arguments)
