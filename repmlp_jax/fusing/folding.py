"""What is to be folded: for which call of a model, and which of its layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from repmlp_jax.fusing.modules import dotted, iterate_nodes


@dataclasses.dataclass(frozen=True)
class Folding:
    """The arguments of `fuse_params` that a fused model was made with, in its attribute `folding`.

    Attributes:
        example: shape and name of the dtype of each input; None: only modules with `fused()` were to be replaced.
        call: the function that called the model; None: `model(*example)`.
        only: what was to be folded; None: everything.
        dense_groups: whether a grouped convolution could become dense.
    """

    example: tuple[tuple[tuple[int, ...], str], ...] | None
    call: Callable | None = None
    only: Any = None
    dense_groups: bool = False

    @classmethod
    def of(cls, function: str, example: Any, call: Callable | None, only: Any, dense_groups: bool) -> "Folding":
        """The record of a function's arguments.

        Args:
            function: its name, for messages.
            example: an input of the call, or a tuple of its inputs: arrays or `jax.ShapeDtypeStruct`s; None: no call.
            call: as of `fuse_params`.
            only: as of `fuse_params`.
            dense_groups: as of `fuse_params`.

        Raises:
            TypeError: if an argument is of another kind.
            ValueError: if what belongs to a call is given without an example.
        """
        only = tuple(only) if isinstance(only, list) else only
        if example is None:
            if call is not None or dense_groups:
                raise ValueError(f"{function}: call and dense_groups need an example of the call's inputs")
            return cls(None, only=only)
        inputs = example if isinstance(example, tuple | list) and not hasattr(example, "dtype") else (example,)
        for array in inputs:
            if not (hasattr(array, "shape") and hasattr(array, "dtype")):
                raise TypeError(
                    f"{function}: example must be an array or a jax.ShapeDtypeStruct, or a tuple of them for a call "
                    f"with several inputs; it holds {array!r}"
                )
        if call is not None and not callable(call):
            raise TypeError(f"{function}: call must be a function (model, *example) → outputs, not {call!r}")
        shapes = tuple((tuple(map(int, array.shape)), str(array.dtype)) for array in inputs)
        return cls(shapes, call, only, bool(dense_groups))

    @property
    def inputs(self) -> list[jax.ShapeDtypeStruct]:
        """The abstract inputs of the call."""
        assert self.example is not None
        return [jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype)) for shape, dtype in self.example]

    def apply(self, model: nnx.Module, *inputs: Any) -> Any:
        """Calls the model."""
        return model(*inputs) if self.call is None else self.call(model, *inputs)


def selection(model: nnx.Module, only: Any) -> Callable[[tuple, Any], bool]:
    """Whether `only`, the argument of `fuse_params`, chooses a module, given its path.

    Raises:
        TypeError: if `only` is neither paths nor a filter of NNX.
        ValueError: if it chooses no module.
    """
    if only is None:
        return lambda path, module: True
    only = tuple(only) if isinstance(only, list) else only
    paths = (only,) if isinstance(only, str) else only
    if isinstance(paths, tuple) and paths and all(isinstance(path, str) for path in paths):
        for path in paths:
            if not any(_lies_below(dotted(found), path) for found, _ in iterate_nodes(model)):
                raise ValueError(f"only: {type(model).__name__} has no module {path!r}")
        return lambda path, module: any(_lies_below(dotted(path), chosen) for chosen in paths)
    try:
        predicate = nnx.filterlib.to_predicate(only)
    except (TypeError, ValueError):  # a ValueError where Flax fails to write the message
        raise TypeError(f"only must be dotted paths of modules or a filter of NNX, not {only!r}") from None
    if not any(predicate(path, node) for path, node in iterate_nodes(model) if isinstance(node, nnx.Module)):
        raise ValueError(f"only: the filter chooses no module of this {type(model).__name__}")
    return predicate


def _lies_below(path, chosen):
    return path == chosen or path.startswith(f"{chosen}.")


def abstractly(model: nnx.Module) -> nnx.Module:
    """The model with shapes and dtypes in place of the arrays of its variables, which may be traced.

    Arrays that are not variables are arrays of zeros, since NNX takes no shape for an array there.
    """
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, _abstract(state))


def transformed_abstractly(transform: Callable[[nnx.Module], nnx.Module], model: nnx.Module) -> nnx.Module:
    """What `transform` would return for a model that `abstractly` returned, abstractly."""
    graphdef, state = nnx.split(model)
    transformed = None

    def pure(state):
        nonlocal transformed
        transformed, state = nnx.split(transform(nnx.merge(graphdef, state)))
        return state

    state = jax.eval_shape(pure, state)
    assert transformed is not None
    return nnx.merge(transformed, _abstract(state))


def _abstract(state):
    def of(leaf):
        if isinstance(leaf, nnx.Variable):
            return jax.tree.map(lambda array: jax.ShapeDtypeStruct(np.shape(array), array.dtype), leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return np.broadcast_to(np.zeros((), leaf.dtype), np.shape(leaf))

    return jax.tree.map(of, state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
