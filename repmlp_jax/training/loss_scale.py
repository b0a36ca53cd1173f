"""Dynamic loss scaling, which keeps the gradients of float16 above its smallest numbers (arXiv 1710.03740)."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

STEPS_TO_GROW = 2000
LARGEST = 2.0**24


class LossScale(NamedTuple):
    """The factor of the loss, by which the gradients are divided again.

    Attributes:
        factor: a power of two, if it was one at the start.
        good_steps: steps since it changed last.
    """

    factor: Float[Array, ""]
    good_steps: Int[Array, ""]


def start(factor: float) -> LossScale:
    """The scale before the first step."""
    return LossScale(jnp.float32(factor), jnp.int32(0))


def adjusted(scale: LossScale, finite: Bool[Array, ""]) -> LossScale:
    """The scale after a step: halved where gradients were not finite, doubled after 2,000 steps where all were."""
    grows = finite & (scale.good_steps + 1 >= STEPS_TO_GROW)
    factor = jnp.where(finite, jnp.where(grows, 2.0, 1.0), 0.5).astype(jnp.float32) * scale.factor
    good_steps = jnp.where(finite & ~grows, scale.good_steps + 1, 0).astype(jnp.int32)
    return LossScale(jnp.clip(factor, 1.0, LARGEST), good_steps)
