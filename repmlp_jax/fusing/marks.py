"""Marking the layers of a model, so that each call of one is a single equation of the model's jaxpr."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from repmlp_jax.fusing.folded import FoldedBranch, FoldedNorm
from repmlp_jax.fusing.modules import iterate_nodes
from repmlp_jax.fusing.program import LAYER, REFUSED, Program, array_paths

AFFINE = (nnx.Conv, nnx.ConvTranspose, nnx.Linear, nnx.LinearGeneral)
GONE = (FoldedNorm, FoldedBranch)
# Norms of the data itself, which the report names.
OF_THE_DATA = (nnx.LayerNorm, nnx.RMSNorm, nnx.GroupNorm, nnx.InstanceNorm)


def layers_of(model: nnx.Module) -> list[tuple[tuple, Any]]:
    """Paths and modules of the layers that folding is about, each once, in an order that folding does not change."""
    return [(path, node) for path, node in iterate_nodes(model) if is_affine(node) or is_norm(node) or _is_gone(node)]


def is_affine(module: Any) -> bool:
    """Whether a module is a convolution or an FC of Flax."""
    return isinstance(module, AFFINE)


def is_norm(module: Any) -> bool:
    """Whether a module is Flax's batch norm, or says by `normalises_last_axis` that it is one of the last axis."""
    return isinstance(module, nnx.BatchNorm) or (
        isinstance(module, nnx.Module) and hasattr(type(module), "normalises_last_axis")
    )


def _is_gone(module):
    return isinstance(module, GONE)


def why_unknown(module: Any) -> str | None:
    """Why it is not known what a layer computes; None: it is known."""
    kinds = (*AFFINE, nnx.BatchNorm)
    defining = next(kind for kind in type(module).__mro__ if "__call__" in vars(kind))
    if defining not in kinds and "normalises_last_axis" not in vars(defining):
        return f"{type(module).__name__} overrides __call__"
    if getattr(module, "mask", None) is not None:
        return "it has a mask"
    usual = {
        "promote_dtype": dtypes.promote_dtype,
        "dot_general": lax.dot_general,
        "dot_general_cls": None,
        "conv_general_dilated": lax.conv_general_dilated,
    }
    for name, value in usual.items():
        found = getattr(module, name, value)
        if found is not value and found is not None and not hasattr(found, "computes_as_usual"):
            return f"it has its own {name}"
    if getattr(module, "batch_axis", None):
        return "it has batch axes"
    if is_norm(module) and (getattr(module, "axis", -1) != -1 or not getattr(module, "normalises_last_axis", True)):
        return "it normalises other axes than the last"
    if is_affine(module) and not isinstance(module.kernel, nnx.Variable):
        return "its kernel is not a variable"
    for name, value in vars(module).items():
        if isinstance(value, nnx.Variable) and _changes_when_read(value):
            return f"its {name} changes its value when it is read"
    return None


def _changes_when_read(variable):
    kind = type(variable)
    plain = all(getattr(kind, name) is getattr(nnx.Variable, name) for name in ("get_value", "__getitem__"))
    return not plain or bool(variable.get_metadata().get("on_get_value"))


def mark(model: nnx.Module, *, batched_as_usual: bool = False) -> nnx.Module:
    """Gives each layer of a model a class whose `__call__` is one equation; the model is changed in place.

    Args:
        model: a copy.
        batched_as_usual: leave the axes of a call under `jax.vmap` to JAX; otherwise they become the first ones, and
            the name of the call ends with the number of those that its parameters have, or "some" if not all have them.
    """
    for number, (_, module) in enumerate(layers_of(model)):
        if _is_gone(module) or why_unknown(module) is None:
            with contextlib.suppress(TypeError):  # a class whose subclasses need arguments is left
                module.__class__ = _marked(type(module), number, batched_as_usual)  # type: ignore[arg-type]
    return model


@functools.cache  # JAX keeps every class of modules for ever
def _marked(kind: type, number: int, batched_as_usual: bool) -> type:
    def call(self, *arguments, **options):
        name = "x" if "x" in options else "inputs"
        x, *others = arguments if arguments else (options.pop(name),)
        if reason := _refusal(self, others, options):
            return kind.__call__(self, _named(lambda x: x, f"{REFUSED}{number}_{reason}")(x), *others, **options)
        graphdef, state = nnx.split(self)

        def layer(x, state):
            return kind.__call__(nnx.merge(graphdef, state), x)

        return (_named(layer, f"{LAYER}{number}") if batched_as_usual else _batched(layer, number))(x, state)

    marked = type(kind)(kind.__name__, (kind,), {"__call__": call, "__module__": kind.__module__})
    return marked


def _batched(layer, number, stack=0):
    """A call whose axes under `jax.vmap` are the first ones of its input, parameters and output."""
    call = jax.custom_batching.custom_vmap(_named(layer, f"{LAYER}{number}_{stack}"))

    @call.def_vmap
    def rule(axis_size, in_batched, x, state):
        of_input, of_state = in_batched
        flags = set(jax.tree.leaves(of_state))
        axes = jax.tree.map(lambda batched: 0 if batched else None, (of_input, of_state))
        several = jax.vmap(layer, axes, axis_size=axis_size)
        inner = "some" if stack == "some" or len(flags) > 1 else stack + (flags == {True})
        return _batched(several, number, inner)(x, state), True

    return call


def _named(function, name):
    function.__name__ = function.__qualname__ = name
    return jax.jit(function)


def _refusal(layer, others, options) -> str | None:
    """Why a call may not be folded."""
    if isinstance(layer, GONE):
        return None
    if is_norm(layer):
        given = others[0] if others and isinstance(layer, nnx.BatchNorm) else options.get("use_running_average")
        others = others[1:] if isinstance(layer, nnx.BatchNorm) else others
        options = {name: value for name, value in options.items() if name != "use_running_average"}
        if not (layer.use_running_average if given is None else given):
            return "it is called in training mode"
        if options.get("mask") is not None:
            return "it is called with a mask"
    if any(value is not None for value in (*others, *options.values())):
        return "it is called with more arguments"
    return None


def trace(model: nnx.Module, call: Callable, example: Sequence[jax.ShapeDtypeStruct]) -> tuple[Program, list]:
    """The program of one call of an abstract model, and the numbers of the arrays of each layer.

    Variables that the call changes, such as those that are sown, are outputs of the program.
    """
    graphdef, state = nnx.split(model)
    arrays, structure = jax.tree.flatten(state)
    numbers_of = {path: number for number, path in enumerate(array_paths(state))}
    before: list[int | None] = []

    def function(arrays, example):
        nonlocal before
        module = nnx.merge(graphdef, jax.tree.unflatten(structure, arrays))
        outputs = jax.tree.leaves(call(module, *example))
        after = nnx.state(module)
        before = [*(None for _ in outputs), *map(numbers_of.get, array_paths(after))]
        return outputs, jax.tree.leaves(after)

    with jax.disable_jit(False):  # which would remove the marks
        jaxpr = jax.make_jaxpr(function)(arrays, list(example))
    program = Program(jaxpr, len(arrays), before)
    numbers = nnx.merge(graphdef, jax.tree.unflatten(structure, range(len(arrays))))
    return program, [jax.tree.leaves(nnx.state(layer)) for _, layer in layers_of(numbers)]


def labels(model: nnx.Module) -> list[str]:
    """The path of each array of a model."""
    return array_paths(nnx.state(model))
