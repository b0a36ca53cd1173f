"""Fusing whole models: replaces every fusable module by its fused form."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from repmlp_jax.fusing.algebra import Norm
from repmlp_jax.fusing.host import transformed_on_host


def fuse_params(model: nnx.Module) -> nnx.Module:
    """Returns a model in which the fused form replaces every fusable module, at any depth.

    A module is fusable if it has a method `fused()` that returns its replacement; all blocks of this library and your
    own modules can have one. The outermost fusable module decides for its submodules. The result is a new model in
    evaluation mode; the given model is not changed. A block with two parents is fused once and stays shared.

    This is a pure transformation: it works under `jax.jit`, `jax.grad`, `jax.vmap` over a stack of models, and
    `nnx.eval_shape`, which returns the abstract fused model. (JAX's transformations take a model as a tree, in which a
    module with two parents occurs twice; `nnx.jit` keeps it shared.) Fusing a fused model changes nothing.

    Args:
        model: any NNX module.

    Returns:
        The fused model, in evaluation mode.

    Raises:
        TypeError: if `model` is not an NNX module.
        ValueError: if running statistics to fold are not finite, or a variance is negative. (Traced values cannot be
            checked.)

    Warns:
        UserWarning: if the model holds no fusable module.

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
    """Replaces each outermost fusable module by its `fused()`, without checks."""
    return replace_modules(model, is_fusable, lambda path, module: module.fused())


def is_fusable(module) -> bool:
    """Whether `fuse_params` replaces a module."""
    return isinstance(module, nnx.Module) and callable(getattr(module, "fused", None))


def is_norm(module) -> bool:
    """Whether a module is a batch norm: it has what a `Norm` has, and its statistics are NNX's."""
    return (
        isinstance(module, nnx.Module)
        and isinstance(module, Norm)
        and all(isinstance(statistics, nnx.BatchStat) for statistics in (module.mean, module.var))
    )


def fusable_modules(model: nnx.Module) -> list[tuple[tuple, nnx.Module]]:
    """The outermost fusable modules and their paths, each module once."""
    found: list[tuple[tuple, nnx.Module]] = []

    def note(path, module):
        found.append((path, module))
        return module

    _walk(model, is_fusable, note)
    return found


def replace_modules(
    model: nnx.Module, chosen: Callable[[object], bool], replacement: Callable[[tuple, Any], nnx.Module]
) -> nnx.Module:
    """Copies a model and replaces each outermost chosen module by `replacement(path, module)`.

    A module with several paths is replaced once, and its replacement is shared. Other modules are copied; their arrays
    are shared with the given model.
    """
    return _walk(nnx.clone(model), chosen, replacement)


def _walk(root, chosen, replacement):
    """Replaces each outermost chosen module by `replacement(path, module)` and returns the new root.

    (`nnx.recursive_map` visits submodules first, so a module could not decide for them.)
    """
    done = {}

    def walk(path, node):
        if id(node) not in done:
            if chosen(node):
                done[id(node)] = node, replacement(path, node)
            else:
                done[id(node)] = node, node  # for a module that holds itself
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
    """Formats a path for messages."""
    return ".".join(map(str, path)) or "the model itself"


def _children(node) -> list[tuple]:
    """The modules, lists, tuples and dicts that a node directly holds."""
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
        if not is_norm(norm):
            continue
        mean: Any = norm.mean[...]
        var: Any = norm.var[...]
        if not all(_has_values(statistics) for statistics in (mean, var)):
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


def _has_values(array) -> bool:
    return isinstance(array, jax.Array | np.ndarray) and not isinstance(array, jax.core.Tracer)


def _on_this_process(array) -> np.ndarray:
    """The values on the devices of this process."""
    if isinstance(array, np.ndarray):
        return array
    return np.concatenate([np.ravel(shard.data) for shard in array.addressable_shards])
