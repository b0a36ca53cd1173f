"""How long models take for one image."""

import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.models.images import input_shape_of

RUNS = 15


def seconds_per_image(models: Sequence[nnx.Module]) -> list[float]:
    """The medians of the times that compiled calls of models take with one image of `input_shape`."""
    return median_seconds([_compiled(model) for model in models])


def median_seconds(calls: Sequence[Callable]) -> list[float]:
    """The medians of the times of functions without arguments.

    They are called in turn, so that a drift of the machine meets all of them.
    """
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(RUNS):
        for call, found in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call())
            found.append(time.perf_counter() - start)
    return [statistics.median(found) for found in seconds]


def _compiled(model):
    """A function without arguments that calls the model, compiled and run once."""
    graphdef, state = nnx.split(model)
    image = jnp.zeros((1, *input_shape_of(model)), jnp.float32)
    forward = jax.jit(lambda state, image: nnx.merge(graphdef, state)(image))
    jax.block_until_ready(forward(state, image))
    return lambda: forward(state, image)
