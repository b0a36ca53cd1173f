"""Fusing whole models: every module that knows how to fuse is replaced by what it fuses to."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from repmlp_jax.fusing.algebra import Norm
from repmlp_jax.fusing.host import transformed_on_host


def fuse_params(model: nnx.Module) -> nnx.Module:
    """Returns the model with every fusable module, wherever it sits, replaced by its fused twin.

    A module takes part by having a method `fused()` that returns its replacement; all blocks of this library do, and
    a module of your own can. The outermost such module decides for what it holds. The result is a new model in
    evaluation mode; the given one stays as it is. A block that has two parents is fused once and stays shared.

    It is a pure transformation: it works under `jax.jit`, `jax.grad`, `jax.vmap` over a stack of models, and
    `nnx.eval_shape`, which gives the abstract fused model. (JAX's own transformations take a model as a tree, in
    which a module with two parents is there twice; `nnx.jit` keeps it one.) Fusing a fused model changes nothing.

    Args:
        model: any NNX module.

    Returns:
        The fused model, in evaluation mode.

    Raises:
        TypeError: if `model` is not an NNX module.
        ValueError: if running statistics that would be folded are not finite, or a variance is negative. (Traced
            values cannot be looked at and are not checked.)

    Warns:
        UserWarning: if there is nothing to fuse in the model.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, fuse_params
        >>> block = RepMLP(4, 4, image_size=(6, 6), partition_size=(3, 3), rngs=nnx.Rngs(0))
        >>> model = nnx.Sequential(block, nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
        >>> [type(layer).__name__ for layer in fuse_params(model).layers]
        ['FusedRepMLP', 'Linear']
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"fuse_params takes an nnx.Module, not {type(model).__name__}")
    if not fusable_modules(model):
        warnings.warn(
            f"nothing to fuse: {type(model).__name__} holds no module with a fused() method. "
            f"Either it is fused already or it is not the model you meant.",
            UserWarning,
            stacklevel=2,
        )
    fused = transformed_on_host(_checked_and_fused, model)
    fused.eval()
    return fused


def _checked_and_fused(model):
    for path, module in fusable_modules(model):
        _check_statistics(path, module)
    return with_fused_modules(model)


def with_fused_modules(model: nnx.Module) -> nnx.Module:
    """The model with `fused()` of each outermost fusable module in its place, and nothing checked."""
    return replace_modules(model, is_fusable, lambda path, module: module.fused())


def is_fusable(module) -> bool:
    """Whether a module takes part in `fuse_params`."""
    return isinstance(module, nnx.Module) and callable(getattr(module, "fused", None))


def fusable_modules(model: nnx.Module) -> list[tuple[tuple, nnx.Module]]:
    """The outermost fusable modules with their paths, each once."""
    found: list[tuple[tuple, nnx.Module]] = []

    def note(path, module):
        found.append((path, module))
        return module

    _walk(model, is_fusable, note)
    return found


def replace_modules(
    model: nnx.Module,
    chosen: Callable[[object], bool],
    replacement: Callable[[tuple, Any], nnx.Module],
) -> nnx.Module:
    """A copy of the model in which `replacement(path, module)` stands for each outermost chosen module.

    A module that is reached by several paths is replaced once, and its replacement is shared by them. Other modules
    are copied, their arrays shared with those of the given model.
    """
    return _walk(nnx.clone(model), chosen, replacement)


def _walk(root, chosen, replacement):
    """Puts `replacement(path, module)` in the place of each outermost chosen module, and returns the new root.

    (`nnx.recursive_map` visits what a module holds before the module, which then could not decide for it.)
    """
    done = {}

    def walk(path, node):
        if id(node) not in done:
            if chosen(node):
                done[id(node)] = node, replacement(path, node)
            else:
                done[id(node)] = node, node  # while a module that holds itself is walked
                done[id(node)] = node, walk_children(path, node)
        return done[id(node)][1]

    def walk_children(path, node):
        changed = {key: new for key, child in _children(node) if (new := walk((*path, key), child)) is not child}
        if changed and isinstance(node, tuple):
            items = [changed.get(index, item) for index, item in enumerate(node)]
            return type(node)(*items) if hasattr(node, "_fields") else tuple(items)
        for key, new in changed.items():
            _set(node, key, new)
        return node

    return walk((), root)


def dotted(path: tuple) -> str:
    """A path as it is written in messages."""
    return ".".join(map(str, path)) or "the model itself"


def _children(node) -> list[tuple]:
    """The modules, lists, tuples and dicts that a node holds itself."""
    children: Iterable[tuple[Any, Any]]
    if isinstance(node, nnx.List | list | tuple):
        children = enumerate(node)
    elif isinstance(node, nnx.Dict | dict):
        children = node.items()
    elif isinstance(node, nnx.Pytree):
        children = vars(node).items()
    else:
        children = ()
    return [(key, child) for key, child in children if isinstance(child, nnx.Pytree | list | tuple | dict)]


def _set(node, key, value):
    if isinstance(node, nnx.Pytree) and not isinstance(node, nnx.List | nnx.Dict):
        setattr(node, key, value)
    else:
        node[key] = value


def _check_statistics(path, module):
    for inner, norm in nnx.iter_graph(module):
        if not isinstance(norm, Norm):
            continue
        mean: Any = norm.mean[...]
        var: Any = norm.var[...]
        if not all(isinstance(statistics, jax.Array | np.ndarray) for statistics in (mean, var)) or any(
            isinstance(statistics, jax.core.Tracer) for statistics in (mean, var)
        ):
            continue
        where = dotted((*path, *inner))
        mean, var = _on_this_process(mean), _on_this_process(var)
        broken = int(np.sum(~np.isfinite(mean))) + int(np.sum(~np.isfinite(var)))
        negative, lowest = int(np.sum(var < 0)), float(var.min())
        if broken:
            raise ValueError(f"cannot fuse {where}: {broken} of its {2 * mean.size} running statistics are not finite")
        if negative:
            raise ValueError(
                f"cannot fuse {where}: {negative} of its {var.size} running variances are negative, "
                f"the lowest {lowest:g}"
            )


def _on_this_process(array) -> np.ndarray:
    """The values that this process has a part of."""
    if isinstance(array, np.ndarray):
        return array
    return np.concatenate([np.ravel(shard.data) for shard in array.addressable_shards])
