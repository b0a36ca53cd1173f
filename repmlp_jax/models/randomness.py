"""The random streams of a model, which are neither saved nor exchanged."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

weights = nnx.Not(nnx.RngState)
"""The filter of a model's parameters and statistics."""


def abstract(make: Callable, *arguments, **options) -> Any:
    """The model that `make(*arguments, **options, rngs=…)` builds, without its arrays."""

    def build():
        rngs = nnx.Rngs(0)
        # A count of NumPy is not traced. At every draw Flax asks a traced one for its sharding, and JAX writes an error
        # of all operations so far, which took half of the time.
        rngs.default.count.set_raw_value(np.zeros((), np.uint32))
        return _with_arrays_as_data(make(*arguments, **options, rngs=rngs))

    return nnx.eval_shape(build)


def _with_arrays_as_data(model):
    """The model, whose attributes that are arrays are told to Flax, which takes them for constants while it traces."""
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            arrays = {name: value for name, value in vars(node).items() if isinstance(value, jax.core.Tracer)}
            for name, array in arrays.items():
                setattr(node, name, nnx.data(array))
    return model


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
