"""How good a model is, how far the fused one is from the trained one, and how fast both are."""

import functools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from repmlp_jax.training.sharding import (
    put_batch,
    put_everywhere,
    put_on_every_device,
    replicated,
    split_batch,
)


class Comparison(NamedTuple):
    """A trained model beside its fused twin on the same images.

    Attributes:
        scores: of the trained and the fused one.
        largest_difference: largest absolute difference of any output.
        largest_output: largest absolute output of the trained one.
        images_per_second: of the trained and the fused one.
    """

    scores: tuple[dict[str, float], dict[str, float]]
    largest_difference: float
    largest_output: float
    images_per_second: tuple[float, float]


class Evaluator:
    """Evaluates models on a split, every image exactly once on any number of devices.

    Args:
        batches: gives the split's batches anew at each call: dicts of arrays on the devices, of which "mask" says what
            counts, as the last batch is filled up.
        predict: `(model, batch) → outputs`; in jit, with the model in evaluation mode.
        judge: `(outputs, batch) → what there is to know of them`, in jit.
        summarise: all that was judged, a list of it with NumPy arrays → scores by their names.
        mesh: the devices.
    """

    def __init__(
        self,
        batches: Callable[[], Iterable[dict[str, jax.Array]]],
        predict: Callable[[nnx.Module, dict], jax.Array],
        judge: Callable[[jax.Array, dict], Any],
        summarise: Callable[[list], dict[str, float]],
        mesh,
    ):
        self._batches = batches
        self._summarise = summarise
        self._mesh = mesh
        self._evaluate_batch = jax.jit(
            functools.partial(_evaluate_batch, predict, judge), out_shardings=replicated(mesh)
        )
        self._compare_batch = jax.jit(functools.partial(_compare_batch, predict, judge), out_shardings=replicated(mesh))
        self._predict = jax.jit(functools.partial(_predict, predict))

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """The model's scores."""
        model = put_everywhere(model, self._mesh)
        judged = [self._evaluate_batch(model, batch) for batch in self._visible("evaluating")]
        return self._summarise(jax.device_get(judged))

    def outputs(self, model: nnx.Module) -> np.ndarray:
        """What the model gives for every example, those that fill up the last batch included."""
        model = put_everywhere(model, self._mesh)
        gather = jax.jit(lambda outputs: outputs, out_shardings=replicated(self._mesh))
        return np.concatenate([gather(self._predict(model, batch)) for batch in self._visible("embedding")])

    def compare(self, trained: nnx.Module, fused: nnx.Module, runs: int = 5) -> Comparison:
        """Puts the fused model beside the trained one."""
        trained, fused = put_everywhere(trained, self._mesh), put_everywhere(fused, self._mesh)
        judged = [self._compare_batch(trained, fused, batch) for batch in self._visible("comparing trained and fused")]
        of_trained, of_fused, differences, outputs = zip(*jax.device_get(judged), strict=True)
        return Comparison(
            (self._summarise(list(of_trained)), self._summarise(list(of_fused))),
            float(max(differences)),
            float(max(outputs)),
            tuple(self._images_per_second(model, runs) for model in (trained, fused)),
        )

    def _images_per_second(self, model, runs):
        batch = next(iter(self._batches()))
        return images_per_second(lambda: self._predict(model, batch), len(batch["mask"]), runs)

    def _visible(self, description):
        hidden = jax.process_index() > 0
        return tqdm(self._batches(), description, unit=" batches", delay=2, leave=False, disable=hidden)


def resident_batches(dataset: dict[str, np.ndarray], batch_size: int, mesh) -> Callable[[], Iterator[dict]]:
    """The batches of a dataset that lies on the devices and that every process has.

    Args:
        dataset: name → array (examples, …).
        batch_size: examples of a batch, of all devices together.
        mesh: the devices.
    """
    resident = {name: put_on_every_device(array, mesh) for name, array in dataset.items()}
    examples = len(next(iter(dataset.values())))

    @functools.partial(jax.jit, out_shardings=split_batch(mesh))
    def cut(resident, start):
        places = start + jnp.arange(batch_size, dtype=jnp.int32)
        inside = jnp.minimum(places, examples - 1)
        return {name: array[inside] for name, array in resident.items()} | {"mask": places < examples}

    return lambda: (cut(resident, np.int32(start)) for start in range(0, examples, batch_size))


def streamed_batches(open_stream: Callable[[], Iterable[dict[str, np.ndarray]]], mesh) -> Callable[[], Iterator[dict]]:
    """The batches of which this process reads its part; all processes have equally many."""
    return lambda: (put_batch(batch, mesh) for batch in open_stream())


def in_evaluation(model: nnx.Module) -> nnx.Module:
    """A view of the model in evaluation mode, whatever there is in it that has modes."""
    return nnx.view(model, raise_if_not_found=False, use_running_average=True, deterministic=True)


def images_per_second(call: Callable[[], jax.Array], images: int, runs: int) -> float:
    """The median speed of a call that does so many images, after one that compiles."""
    call().block_until_ready()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        call().block_until_ready()
        seconds.append(time.perf_counter() - start)
    return images / statistics.median(seconds)


def _predict(predict, model, batch):
    return predict(in_evaluation(model), batch)


def _evaluate_batch(predict, judge, model, batch):
    return judge(_predict(predict, model, batch), batch)


def _compare_batch(predict, judge, trained, fused, batch):
    outputs, fused_outputs = (_predict(predict, model, batch) for model in (trained, fused))
    return (
        judge(outputs, batch),
        judge(fused_outputs, batch),
        jnp.max(jnp.abs(outputs - fused_outputs)),
        jnp.max(jnp.abs(outputs)),
    )
