"""Walking through the modules of a model, which attributes, lists, dicts and tuples hold, and replacing some."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from flax import nnx

HOLDERS = (nnx.Pytree, list, tuple, dict)


def replace_modules(
    model: nnx.Module, chosen: Callable[[object], bool], replacement: Callable[[tuple, Any], nnx.Module]
) -> nnx.Module:
    """Copies a model and replaces each outermost chosen module by `replacement(path, module)`.

    A module with several paths is replaced once, and its replacement is shared. Other modules are copied; their arrays
    are shared with the given model.
    """
    return walk_modules(nnx.clone(model), chosen, replacement)


def walk_modules(root, chosen, replacement):
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


def iterate_nodes(root) -> Iterator[tuple[tuple, Any]]:
    """Yields every module once, and its variables, with their paths; `nnx.iter_graph` takes four times as long."""
    seen = set()

    def walk(path, node):
        if id(node) not in seen:
            seen.add(id(node))
            yield path, node
            for key, child in _items(node):
                if isinstance(child, HOLDERS):
                    yield from walk((*path, key), child)
                elif isinstance(child, nnx.Variable):
                    yield (*path, key), child

    return walk((), root)


def node_at(root, path: tuple) -> Any:
    """The module at a path of those that `iterate_nodes` yields."""
    for key in path:
        root = dict(_items(root))[key]
    return root


def _children(node) -> list[tuple]:
    """The modules, lists, tuples and dicts that a node directly holds."""
    return [(key, child) for key, child in _items(node) if isinstance(child, HOLDERS)]


def _items(node) -> Iterable[tuple[Any, Any]]:
    if isinstance(node, nnx.List | list | tuple):
        return enumerate(node)
    if isinstance(node, nnx.Dict | dict):
        return node.items()
    return vars(node).items() if isinstance(node, nnx.Pytree) else ()


def _set(node, key, value):
    if isinstance(node, nnx.Pytree) and not isinstance(node, nnx.List | nnx.Dict):
        setattr(node, key, value)
    else:
        node[key] = value
