"""Fusing whole models: replaces every fusable module by its fused form."""

import operator
import warnings
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from repmlp_jax.fusing.algebra import Norm
from repmlp_jax.fusing.equal import check_equal
from repmlp_jax.fusing.find import Found, find_steps
from repmlp_jax.fusing.finite import check_finite, has_values, on_this_process
from repmlp_jax.fusing.folding import Folding, abstractly, selection
from repmlp_jax.fusing.host import transformed_on_host
from repmlp_jax.fusing.marks import layers_of
from repmlp_jax.fusing.modules import dotted, iterate_nodes, replace_modules, walk_modules
from repmlp_jax.fusing.steps import Step, fold


def fuse_params(
    model: nnx.Module,
    example: Any = None,
    *,
    call: Callable | None = None,
    only: Any = None,
    dense_groups: bool = False,
    check: bool = False,
) -> nnx.Module:
    """Returns a model that computes the same, in evaluation mode, without what can be folded.

    Every module with a method `fused()` is replaced by what that returns, at any depth; all blocks of this library and
    your own modules can have one. The outermost fusable module decides for its submodules. A block with two parents is
    fused once and stays shared. A stack of blocks, which `nnx.vmap` over a constructor makes, is fused to a stack, as
    by `jax.vmap(fuse_params)`.

    With an `example`, batch norms and parallel branches of any model are folded, too: those of Flax's convolutions and
    FCs, wherever the program of one call shows that the result is the same. A norm goes into the layer before it or
    the layers after it, through reshapes, transposes and average pools; convolutions, and norms, that are applied to
    one value and added become one convolution. Layers keep their class and get a bias; a norm that is gone leaves a
    `FoldedNorm`, which returns its input, and a branch a `FoldedBranch`, which returns zeros. What is folded is valid
    for that call; another method of the model, or another flag, may need what is gone. `fuse_report(model, example)`
    says what stays, and why.

    This is a pure transformation: it works under `jax.jit`, `jax.grad`, `jax.vmap` over a stack of models, and
    `nnx.eval_shape`, which returns the abstract fused model. (JAX's transformations take a model as a tree, in which a
    module with two parents occurs twice; `nnx.jit` keeps it shared.) Fusing a fused model changes nothing.

    Args:
        model: any NNX module; it is not changed.
        example: an input of a call, or a tuple of its inputs: arrays or `jax.ShapeDtypeStruct`s, whose shapes and
            dtypes matter. None: only modules with `fused()`.
        call: a function (model, *example) → outputs; None: `model(*example)`.
        only: dotted paths of modules, each with all that it holds, or a filter of NNX; the rest stays as it is and can
            be trained. None: everything.
        dense_groups: also add a grouped convolution to a parallel one of fewer groups where the sum needs more
            multiplications than the branches did.
        check: compare the outputs of both models for random inputs of the example's shapes. It has no effect for
            traced and abstract models.

    Returns:
        The fused model, in evaluation mode. If it was fused with `example` or `only`, its attribute `folding` holds
        them.

    Raises:
        TypeError: if `model` is not an NNX module or is abstract, an argument is of another kind, or a class overrides
            `__call__` but not `fused()`.
        ValueError: if a parameter or a running statistic is NaN or infinite, or a running variance is negative (traced
            values cannot be checked); if the model does not take the example, `only` chooses nothing, or the check
            fails: outputs differ by more than 1e-12 in float64, 1e-5 in float32, 0.02 in float16 or 0.1 in bfloat16, of
            the largest.

    Warns:
        UserWarning: if there is nothing to fuse.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, fuse_params
        >>> block = RepMLP(4, 4, image_size=(6, 6), partition_size=(3, 3), rngs=nnx.Rngs(0))
        >>> model = nnx.Sequential(block, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
        >>> [type(layer).__name__ for layer in fuse_params(model).layers]
        ['FusedRepMLP', 'Linear']
        >>> rngs = nnx.Rngs(0)
        >>> model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs))
        >>> [type(layer).__name__ for layer in fuse_params(model, jnp.zeros((1, 8, 8, 3))).layers]
        ['Conv', 'FoldedNorm']
    """
    check_module(model, "fuse_params")
    check_concrete(model, "fuse_params", "; nnx.eval_shape(fuse_params, model) takes abstract models")
    folding = Folding.of("fuse_params", example, call, only, dense_groups)
    if check and example is None:
        raise ValueError("fuse_params: check needs an example of the call's inputs")
    steps: list[Step] = []

    def transform(model):
        check_weights(model, "fuse")
        fused = with_fused_modules(model, only)
        if folding.example is not None:
            steps.extend(find_foldable(fused, folding).steps)
            fused = fold(fused, steps)
        _record(fused, folding)
        return fused

    fused = transformed_on_host(transform, model)
    fused.eval()
    if not steps and not fusable_modules(model):
        missing = "no module with a fused() method" if example is None else "nothing that can be folded for this call"
        warnings.warn(
            f"nothing to fuse: {type(model).__name__} holds {missing}. "
            f"Either it is fused already or it is not the model you meant.",
            UserWarning,
            stacklevel=2,
        )
    if check:
        check_equal(model, fused, folding)
    return fused


def _record(model, folding):
    """Keeps in a model how it was fused, unless all its blocks were and nothing else."""
    before = getattr(model, "folding", None)
    if not isinstance(before, Folding | None):
        return  # an attribute of the model's own
    if folding.example is not None or folding.only is not None:
        vars(model)["folding"] = folding
    elif before is not None and before.example is None:
        del vars(model)["folding"]


def find_foldable(model: nnx.Module, folding: Folding) -> Found:
    """What can be folded in a model whose own `fused()` were called, and why the other norms stay.

    Raises:
        ValueError: if the model does not take the example.
    """
    model = abstractly(model)
    model.eval()
    chosen = selection(model, folding.only)
    layers = layers_of(model)
    return find_steps(
        model,
        folding.apply,
        folding.inputs,
        chosen=lambda number: chosen(*layers[number]),
        dense_groups=folding.dense_groups,
    )


def check_module(model: Any, function: str):
    """Raises TypeError unless `model`, the argument of a function of that name, is an NNX module."""
    if not isinstance(model, nnx.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"{function}: model must be an nnx.Module, such as RepMLP(…), not {given}")


def check_concrete(model: nnx.Module, function: str, hint: str = ""):
    """Raises TypeError if a model, the argument of a function of that name, has shapes but no values."""
    variables = (node for _, node in iterate_nodes(model) if isinstance(node, nnx.Variable))
    if isinstance(next((variable.get_value() for variable in variables), None), jax.ShapeDtypeStruct):
        raise TypeError(f"{function}: this {type(model).__name__} is abstract: it has shapes, but no weights{hint}")


def check_weights(model: nnx.Module, verb: str):
    """Refuses parameters and running statistics that are NaN or infinite, and negative variances.

    Args:
        model: any NNX module; its traced and abstract arrays are skipped.
        verb: what cannot be done to the model, for the message.

    Raises:
        ValueError: names the arrays or the norm.
    """
    nodes = list(iterate_nodes(model))
    kinds = nnx.Param, nnx.BatchStat
    weights = {dotted(path): node.get_value() for path, node in nodes if isinstance(node, kinds)}
    check_finite(weights, f"cannot {verb}: {type(model).__name__}")
    for path, norm in nodes:
        if is_norm(norm) and has_values(norm.var.get_value()):
            var = on_this_process(norm.var.get_value())
            if negative := int((var < 0).sum()):
                raise ValueError(
                    f"cannot {verb} {dotted(path)}: {negative} of its {var.size} running variances are negative, "
                    f"the lowest {float(var.min()):g}"
                )


def with_fused_modules(model: nnx.Module, only: Any = None) -> nnx.Module:
    """Replaces each outermost fusable module that `only` chooses by its `fused()`, without checks of its values."""
    if only is None:
        return replace_modules(model, is_fusable, fused_form)
    chosen = selection(model, only)
    model = nnx.clone(model)
    modules = {id(module) for path, module in fusable_modules(model) if chosen(path, module)}
    return walk_modules(model, lambda node: id(node) in modules, fused_form)


def fused_form(path: tuple, module: Any) -> nnx.Module:
    """What `module.fused()` returns.

    Raises:
        TypeError: if the module or one that it holds has a `__call__` that its `fused()` does not know of: that of a
            subclass without its own `fused()`, or of a subclassed layer in a block of this library.
        ValueError: if a block of this library is a stack along another axis than the first.
    """
    nodes = list(iterate_nodes(module))
    fuser = next(filter(_defines_fused, type(module).__mro__), None)
    in_our_block = fuser is not None and _is_ours(fuser)
    for inner, part in nodes:
        if is_fusable(part):
            base = overridden(type(part), _defines_fused)
        elif in_our_block and isinstance(part, nnx.Module):
            base = overridden(type(part), _is_layer)
        else:
            base = None
        if base:
            kind = type(part).__name__
            raise TypeError(
                f"cannot fuse {dotted((*path, *inner))}: {kind} has a __call__ of its own, which fusing would drop, as "
                f"it knows that of {base.__name__} alone: define fused() in {kind if is_fusable(part) else 'the block'}"
            )
    stack, of_norms = _stack_shape(module, nodes), _stack_of_norms(nodes)
    if in_our_block and stack != of_norms:
        raise ValueError(
            f"cannot fuse {dotted(path)}: its norms are a stack of {' x '.join(map(str, of_norms))}, and not all its "
            f"arrays begin with these axes: stack it along the first axis, as nnx.vmap does by default"
        )
    fuse = operator.methodcaller("fused")
    for _ in stack:
        fuse = jax.vmap(fuse)
    return fuse(module)


def stack_shape(module: nnx.Module) -> tuple[int, ...]:
    """The sizes of a stack of modules, which `nnx.vmap` over a constructor makes; () for a single module.

    A stack is known by its norms: this library's count their batches in a scalar, and the statistics of Flax's have one
    axis. All arrays of a stack begin with its axes; if some do not, the module holds stacks, but is none.
    """
    return _stack_shape(module, iterate_nodes(module))


def _stack_shape(module, nodes):
    shape = _stack_of_norms(nodes)
    of_all = not shape or all(array.shape[: len(shape)] == shape for array in jax.tree.leaves(nnx.state(module)))
    return shape if of_all else ()


def _stack_of_norms(nodes):
    shapes = set()
    for norm in (node for _, node in nodes if is_norm(node)):
        if hasattr(norm, "batches"):
            shapes.add(norm.batches.shape)
        elif isinstance(norm, nnx.BatchNorm):
            shapes.add(norm.mean.shape[:-1])
    return shapes.pop() if len(shapes) == 1 else ()


def overridden(kind: type, is_known: Callable[[type], bool]) -> type | None:
    """The nearest known class of a class and its base classes, if a class below it overrides its `__call__`."""
    base = next(filter(is_known, kind.__mro__), None)
    if base is None:
        return None
    below = kind.__mro__[: kind.__mro__.index(base)]
    has_call = all(any("__call__" in vars(one) for one in classes) for classes in (below, base.__mro__))
    return base if has_call else None


def _defines_fused(kind: type) -> bool:
    return "fused" in vars(kind)


def _is_layer(kind: type) -> bool:
    return _is_ours(kind) or kind.__module__.startswith("flax.")


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("repmlp_jax.")


def is_fusable(module) -> bool:
    """Whether `fuse_params` replaces a module."""
    return isinstance(module, nnx.Module) and callable(getattr(module, "fused", None))


def is_norm(module) -> bool:
    """Whether a module is a batch norm: it has what a `Norm` has, and its statistics are NNX's."""
    return (
        isinstance(module, nnx.Module)
        and all(isinstance(getattr(module, name, None), nnx.BatchStat) for name in ("mean", "var"))
        and isinstance(module, Norm)
    )


def fusable_modules(model: nnx.Module) -> list[tuple[tuple, nnx.Module]]:
    """The outermost fusable modules and their paths, each module once."""
    found: list[tuple[tuple, nnx.Module]] = []

    def note(path, module):
        found.append((path, module))
        return module

    walk_modules(model, is_fusable, note)
    return found
