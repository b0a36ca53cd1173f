"""The random streams of a model, which are neither saved nor exchanged."""

import jax
import jax.numpy as jnp
from flax import nnx

weights = nnx.Not(nnx.RngState)
"""The filter of a model's parameters and statistics."""


def seeded(model: nnx.Module, seed: int = 0) -> nnx.Module:
    """Gives every abstract stream of random numbers in a model its own key."""
    graphdef, streams, *rest = nnx.split(model, nnx.RngState, ...)
    flat = nnx.to_flat_state(streams)
    keys = iter(jax.random.split(jax.random.key(seed), len(flat) + 1))
    fresh = [(path, variable.replace(_start(variable, next(keys)))) for path, variable in flat]
    return nnx.merge(graphdef, nnx.from_flat_state(fresh), *rest)


def _start(variable, key):
    if isinstance(variable.get_value(), jax.Array):
        return variable.get_value()
    return key if isinstance(variable, nnx.RngKey) else jnp.zeros((), variable.dtype)
