"""Evaluation: scores of a model, and a comparison of the trained and the fused model."""

import functools
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from repmlp_jax.progress import progress_bar
from repmlp_jax.training.sharding import (
    platform_of,
    put_batch,
    put_everywhere,
    put_on_every_device,
    replicated,
    split_batch,
)


class Comparison(NamedTuple):
    """A trained and its fused model on the same images.

    Attributes:
        scores: of the trained and the fused model.
        largest_difference: largest absolute difference of any output, at the highest matmul precision.
        largest_output: largest absolute output of the trained model.
        difference_as_run: largest absolute difference at the devices' default matmul precision.
        images_per_second: of the trained and the fused model.
        of_examples: of the fused model, what `per_example` returns for all examples; None without it.
    """

    scores: tuple[dict[str, float], dict[str, float]]
    largest_difference: float
    largest_output: float
    difference_as_run: float
    images_per_second: tuple[float, float]
    of_examples: Any = None


class Evaluator:
    """Evaluates models on a split, every image exactly once on any number of devices.

    Args:
        batches: the split. The entry "mask" of a batch is False for the examples that pad the last batch.
        predict: `(model, batch) → outputs`; runs under jit, with the model in evaluation mode.
        batch_metrics: `(outputs, batch) → PyTree of arrays`, the metrics of a batch; runs under jit.
        mean_metrics: the metrics of all batches, stacked along a first axis as NumPy arrays → scores by name.
        mesh: the devices.
        per_example: `(outputs, batch) → PyTree of arrays (examples, …)`, which `compare` collects; runs under jit.
    """

    def __init__(
        self,
        batches: "ResidentBatches | StreamedBatches",
        predict: Callable[[nnx.Module, dict], jax.Array],
        batch_metrics: Callable[[jax.Array, dict], Any],
        mean_metrics: Callable[[Any], dict[str, float]],
        mesh,
        per_example: Callable[[jax.Array, dict], Any] | None = None,
    ):
        self._batches = batches
        self._mean_metrics = mean_metrics
        self._mesh = mesh
        self._metrics_all = batches.compile(functools.partial(_evaluate_batch, predict, batch_metrics))
        self._compare_all = batches.compile(functools.partial(_compare_batch, predict, batch_metrics, per_example))
        self._predict = jax.jit(functools.partial(_predict, predict))

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """The model's scores."""
        return self._mean_metrics(self._metrics_all("evaluating", put_everywhere(model, self._mesh)))

    def compare(self, trained: nnx.Module, fused: nnx.Module, runs: int = 5) -> Comparison:
        """Compares the fused model with the trained one; the speed is the median of `runs` calls."""
        trained, fused = (put_everywhere(model, self._mesh) for model in (trained, fused))
        compared = self._compare_all("comparing trained and fused", trained, fused)
        of_trained, of_fused, differences, outputs, of_examples = compared
        as_run = differences
        if rounds_products(self._mesh):
            with jax.default_matmul_precision("highest"):
                *_, differences, outputs, _ = self._compare_all("comparing at the highest precision", trained, fused)
        batch = self._batches.first()

        def speed(model):
            return images_per_second(lambda: self._predict(model, batch), len(batch["mask"]), runs)

        return Comparison(
            scores=(self._mean_metrics(of_trained), self._mean_metrics(of_fused)),
            largest_difference=float(differences.max()),
            largest_output=float(outputs.max()),
            difference_as_run=float(as_run.max()),
            images_per_second=(speed(trained), speed(fused)),
            of_examples=jax.tree.map(lambda parts: parts.reshape(-1, *parts.shape[2:]), of_examples),
        )


def rounds_products(mesh) -> bool:
    """Whether the devices multiply float32 in fewer bits by default: GPUs in TF32, TPUs in bfloat16."""
    return platform_of(mesh) != "cpu"


class ResidentBatches:
    """The batches of a dataset that is held on the devices and that every process has.

    Args:
        dataset: name → array (examples, …).
        batch_size: examples of a batch, of all devices together.
        mesh: the devices.

    Raises:
        ValueError: if the dataset holds no array or no example, its arrays differ in length, or `batch_size` is not
            above 0.
    """

    def __init__(self, dataset: dict[str, np.ndarray], batch_size: int, mesh):
        lengths = {name: len(array) for name, array in dataset.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(f"the arrays of a dataset must have the same number of examples, above 0, not {lengths}")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be above 0")
        self._resident = {name: put_on_every_device(array, mesh) for name, array in dataset.items()}
        self._examples = len(next(iter(dataset.values())))
        self._batch_size = batch_size
        self._mesh = mesh

    def compile(self, function: Callable) -> Callable:
        """Compiles `(description, *models) → function(*models, batch)` over all batches, on the host.

        All batches run in one program, except on the CPU, where XLA runs convolutions in a loop on one core, 20 times
        slower.
        """

        def of_one(resident, number, *models):
            return function(*models, self._cut(resident, number))

        if platform_of(self._mesh) == "cpu":
            of_one = jax.jit(of_one, out_shardings=replicated(self._mesh))
            numbers = range(-(-self._examples // self._batch_size))
            return lambda description, *models: _on_host(
                of_one(self._resident, np.int32(number), *models) for number in _visible(numbers, description)
            )

        @functools.partial(jax.jit, out_shardings=replicated(self._mesh))
        def of_all(resident, *models):
            numbers = jnp.arange(-(-self._examples // self._batch_size), dtype=jnp.int32)
            return lax.map(lambda number: of_one(resident, number, *models), numbers)

        return lambda description, *models: jax.device_get(of_all(self._resident, *models))

    def first(self) -> dict[str, jax.Array]:
        """The first batch."""
        return jax.jit(self._cut)(self._resident, np.int32(0))

    def _cut(self, resident, number):
        places = number * self._batch_size + jnp.arange(self._batch_size, dtype=jnp.int32)
        inside = jnp.minimum(places, self._examples - 1)
        batch = {name: array[inside] for name, array in resident.items()} | {"mask": places < self._examples}
        return lax.with_sharding_constraint(batch, split_batch(self._mesh))


class StreamedBatches:
    """Batches of which each process reads its part; every process has the same number of batches.

    Args:
        open_stream: opens a stream of this process's parts of the batches, from the first batch.
        mesh: the devices.
    """

    def __init__(self, open_stream: Callable[[], Iterable[dict[str, np.ndarray]]], mesh):
        self._open_stream = open_stream
        self._mesh = mesh

    def compile(self, function: Callable) -> Callable:
        """Compiles `(description, *models) → function(*models, batch)` over all batches, on the host."""
        of_one = jax.jit(function, out_shardings=replicated(self._mesh))
        return lambda description, *models: _on_host(
            of_one(*models, put_batch(batch, self._mesh)) for batch in _visible(self._open_stream(), description)
        )

    def first(self) -> dict[str, jax.Array]:
        """The first batch."""
        return put_batch(next(iter(self._open_stream())), self._mesh)


def _on_host(results):
    """The results of all batches, stacked along a new first axis."""
    return jax.tree.map(lambda *parts: np.stack(parts), *jax.device_get(list(results)))


def _visible(batches, description):
    hidden = jax.process_index() > 0 or (isinstance(batches, range) and len(batches) == 1)
    return progress_bar(batches, description, unit=" batches", delay=2, leave=False, disable=hidden)


def in_evaluation(model: nnx.Module) -> nnx.Module:
    """A view of the model in evaluation mode."""
    return nnx.view(model, raise_if_not_found=False, use_running_average=True, deterministic=True)


def images_per_second(call: Callable[[], jax.Array], images: int, runs: int) -> float:
    """The median speed of a call that processes `images` images, after a first call that compiles.

    Raises:
        ValueError: if `runs` is not above 0.
    """
    if runs < 1:
        raise ValueError(f"runs={runs} must be above 0")
    call().block_until_ready()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return images / statistics.median(seconds)


def _predict(predict, model, batch):
    return predict(in_evaluation(model), batch)


def _evaluate_batch(predict, batch_metrics, model, batch):
    return batch_metrics(_predict(predict, model, batch), batch)


def _compare_batch(predict, batch_metrics, per_example, trained, fused, batch):
    outputs, fused_outputs = (_predict(predict, model, batch) for model in (trained, fused))
    return (
        batch_metrics(outputs, batch),
        batch_metrics(fused_outputs, batch),
        jnp.max(jnp.abs(outputs - fused_outputs)),
        jnp.max(jnp.abs(outputs)),
        per_example(fused_outputs, batch) if per_example else None,
    )
