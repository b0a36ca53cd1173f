"""How good a model is, how far the fused one is from the trained one, and how fast both are."""

import functools
import statistics
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from tqdm import tqdm

from repmlp_jax.data import augment
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.sharding import split_batch


class Comparison(NamedTuple):
    """A trained model beside its fused twin on the same images.

    Attributes:
        accuracies: of the trained and the fused one, shares of 1.
        largest_difference: largest absolute difference of any logit.
        largest_logit: largest absolute logit of the trained one.
        images_per_second: of the trained and the fused one.
    """

    accuracies: tuple[float, float]
    largest_difference: float
    largest_logit: float
    images_per_second: tuple[float, float]


class Evaluator:
    """Evaluates models on a split that lies on the device, every image exactly once.

    Args:
        data: the split, `step.Batches`.
        mean: of each channel, images scaled to [0, 1].
        std: standard deviation of each channel.
        batch_size: images at a time; the last batch is filled up, and what fills it does not count.
        mesh: the devices over which a batch is split.
    """

    def __init__(self, data, mean, std, batch_size, mesh):
        self.data = data
        self.batch_size = batch_size
        self._evaluate_batch = jax.jit(functools.partial(_evaluate_batch, batch_size, mean, std, mesh))
        self._compare_batch = jax.jit(functools.partial(_compare_batch, batch_size, mean, std, mesh))
        self._predict = jax.jit(functools.partial(_predict, mean, std))

    def evaluate(self, model: nnx.Module) -> tuple[float, float]:
        """The mean loss in nats and the accuracy, a share of 1."""
        batches = [self._evaluate_batch(model, self.data, start) for start in self._starts("evaluating")]
        losses, corrects = zip(*jax.device_get(batches), strict=True)
        return sum(map(float, losses)) / len(self.data.labels), sum(map(int, corrects)) / len(self.data.labels)

    def compare(self, trained: nnx.Module, fused: nnx.Module, runs: int = 5) -> Comparison:
        """Puts the fused model beside the trained one."""
        starts = self._starts("comparing trained and fused")
        batches = [self._compare_batch(trained, fused, self.data, start) for start in starts]
        corrects, fused_corrects, differences, logits = zip(*jax.device_get(batches), strict=True)
        examples = len(self.data.labels)
        return Comparison(
            (sum(map(int, corrects)) / examples, sum(map(int, fused_corrects)) / examples),
            float(max(differences)),
            float(max(logits)),
            tuple(self._images_per_second(model, runs) for model in (trained, fused)),
        )

    def _images_per_second(self, model, runs):
        images = self.data.images[: self.batch_size]
        self._predict(model, images).block_until_ready()
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            self._predict(model, images).block_until_ready()
            seconds.append(time.perf_counter() - start)
        return len(images) / statistics.median(seconds)

    def _starts(self, description):
        starts = range(0, len(self.data.labels), self.batch_size)
        visible = jax.process_index() == 0
        return (
            jnp.int32(start)
            for start in tqdm(starts, description, unit=" batches", delay=2, leave=False, disable=not visible)
        )


def _predict(mean, std, model, images):
    model = nnx.view(model, raise_if_not_found=False, use_running_average=True, deterministic=True)
    return model(augment.normalise(images, mean, std))


def _batch(batch_size, mesh, data, start):
    """The images and labels from `start` on, and which of them count."""
    places = start + jnp.arange(batch_size, dtype=jnp.int32)
    inside = jnp.minimum(places, len(data.labels) - 1)
    arrays = data.images[inside], data.labels[inside], places < len(data.labels)
    return tuple(jax.lax.with_sharding_constraint(array, split_batch(mesh)) for array in arrays)


def _evaluate_batch(batch_size, mean, std, mesh, model, data, start):
    images, labels, counts = _batch(batch_size, mesh, data, start)
    logits = _predict(mean, std, model, images)
    losses = jnp.where(counts, cross_entropy(logits, labels), 0.0)
    return losses.sum(), _count_correct(logits, labels, counts)


def _compare_batch(batch_size, mean, std, mesh, trained, fused, data, start):
    images, labels, counts = _batch(batch_size, mesh, data, start)
    logits, fused_logits = (_predict(mean, std, model, images) for model in (trained, fused))
    return (
        _count_correct(logits, labels, counts),
        _count_correct(fused_logits, labels, counts),
        jnp.max(jnp.abs(logits - fused_logits)),
        jnp.max(jnp.abs(logits)),
    )


def _count_correct(logits, labels, counts):
    return jnp.sum((jax.lax.argmax(logits, 1, jnp.int32) == labels) & counts, dtype=jnp.int32)
