"""Training in less memory: what a block computed on the way is computed again on the way back."""

import jax
from flax import nnx
from jaxtyping import Array


def rematerialised(module: nnx.Module, x: Array) -> Array:
    """`module(x)`, of which the backward pass keeps the input alone (`jax.checkpoint`).

    Outputs, gradients and the statistics that the module updates are those of `module(x)`; the price is a second
    forward pass. Without a gradient nothing changes.
    """
    graphdef, state = nnx.split(module)

    @jax.checkpoint
    def run(state, x):
        copy = nnx.merge(graphdef, state)
        return copy(x), nnx.state(copy, nnx.Not(nnx.Param))

    y, updated = run(state, x)
    nnx.update(module, updated)
    return y
