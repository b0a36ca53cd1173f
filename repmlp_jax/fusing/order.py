"""The order of a model's modules: that in which one call of the model reads them."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.folding import Folding, abstractly
from repmlp_jax.fusing.marks import trace
from repmlp_jax.fusing.modules import node_at


def call_order(model: nnx.Module, call: Callable, example: Sequence[jax.ShapeDtypeStruct]) -> Callable[[tuple], float]:
    """A key that sorts the paths of modules by when the call first reads one of their arrays.

    Flax itself holds attributes in the order of the alphabet, once a model was cloned, fused or loaded.

    Args:
        model: any NNX module; it is not changed.
        call: a function (model, *example) → outputs.
        example: the abstract inputs of the call.

    Returns:
        A function of a path. Its value is infinite for a module whose arrays the call does not read.
    """
    model = abstractly(model)
    model.eval()
    program, _ = trace(model, call, example)
    reads: dict[int, int] = {}
    for place, (_, equation) in enumerate(program.live_equations(program.scope)):
        for value in equation.operands:
            if value.parameter:
                reads.setdefault(value.parameter[0], place)
    graphdef, state = nnx.split(model)
    arrays, structure = jax.tree.flatten(state)
    numbers = nnx.merge(graphdef, jax.tree.unflatten(structure, range(len(arrays))))

    def first_read(path: tuple) -> float:
        return min(
            (reads.get(n, math.inf) for n in jax.tree.leaves(nnx.state(node_at(numbers, path)))), default=math.inf
        )

    return first_read


def own_order(model: nnx.Module) -> Callable[[tuple], float]:
    """The `call_order` of the call that a model was fused for, or of a call with an image of its `input_shape`.

    All paths are equal if the model has neither, or if the call fails: a model is also printed to see why.
    """
    folding = getattr(model, "folding", None)
    try:
        with jax.numpy_dtype_promotion("standard"):
            if isinstance(folding, Folding) and folding.example is not None:
                return call_order(model, folding.apply, folding.inputs)
            image = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)  # type: ignore[attr-defined]
            return call_order(model, lambda model, x: model(x), [image])
    except Exception:
        return lambda path: 0
