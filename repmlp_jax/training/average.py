"""The exponential moving average of a run's weights, which is evaluated and saved beside them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Int

from repmlp_jax.fusing import algebra


class Average(NamedTuple):
    """Averages over the steps, in float32 or wider: half precision would lose the small changes.

    Norms' running statistics are averaged as the parameters are; what counts or draws, such as a norm's number of
    batches, is that of the last step.

    Attributes:
        parameters: of the model, those that train.
        statistics: of the model.
    """

    parameters: nnx.State
    statistics: nnx.State


def start(parameters: nnx.State, statistics: nnx.State) -> Average:
    """The average before the first step: the values themselves, in arrays of their own, since states are donated."""
    return jax.tree.map(lambda leaf: _widened(jnp.copy(leaf)), Average(parameters, statistics))


def follow(average: Average, now: Average, step: Int[Array, ""], decay: float) -> Average:
    """The average after a step; of itself it keeps `decay`, in the first steps min(decay, (1 + step) / (10 + step)).

    Args:
        average: before the step.
        now: values after the step.
        step: number of steps before this one.
        decay: from 0 to below 1.
    """
    share = jnp.maximum(1 - decay, 9 / (10 + step.astype(jnp.float32)))

    def moved(old, new):
        # In this form what does not change stays as it is, to the last bit.
        new = _widened(new)
        return old + share.astype(old.dtype) * (new - old) if _is_averaged(new) else new

    return jax.tree.map(moved, average, now)


def _rounded(average, like):
    """The average in the dtypes of the model."""
    return jax.tree.map(lambda one, other: one if one.dtype == other.dtype else _cast(one, other.dtype), average, like)


# Compiled, so that it takes arrays that lie on the devices of several processes.
_cast = jax.jit(lambda array, dtype: array.astype(dtype), static_argnums=1)


def models_of(state: Any, graphdef: Any) -> dict[str, Any]:
    """The models of a training state: "" → that of the weights, and "ema_" → that of their average, if it has one."""
    weights = Average(state.parameters, state.statistics)
    each = {"": weights}
    if state.average is not None:
        parameters = nnx.merge_state(state.parameters, state.average.parameters)
        each["ema_"] = _rounded(Average(parameters, state.average.statistics), weights)
    return {prefix: nnx.merge(graphdef, *values, copy=True) for prefix, values in each.items()}


def _is_averaged(leaf) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def _widened(leaf):
    return algebra.widened(leaf) if _is_averaged(leaf) else leaf
