"""Whether two models have the same structure: modules, settings and arrays, apart from the arrays' values."""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.listing import listed
from repmlp_jax.models.arguments import DTYPES
from repmlp_jax.models.state import arrays_of
from repmlp_jax.storage.digest import describe

# `train()` and `eval()` set the modes, and loading sets evaluation; the arguments are what a model is built from.
NO_SETTINGS = ("deterministic", "use_running_average", "arguments")


def differences(model: nnx.Module, expected: nnx.Module) -> str:
    """What is other in a model than in another one, in words; empty if they have the same structure.

    Of a module that is of another class, what it holds is not named.
    """
    found, wanted = _outline(model), _outline(expected)
    paths = {path for path in found.keys() | wanted.keys() if found.get(path, "") != wanted.get(path, "")}
    outermost = sorted(path for path in paths if not any(path.startswith(f"{other}.") for other in paths))
    return listed((f"{path} is {_shown(found, path)} instead of {_shown(wanted, path)}" for path in outermost), shown=3)


def _outline(model) -> dict[str, Any]:
    """Dotted path → class of a module, its setting of this name, or dtype and shape of an array."""
    outline: dict[str, Any] = dict(describe(arrays_of(model)))
    for path, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Module):
            outline[dotted(path)] = type(node)
            outline |= {dotted((*path, name)): value for name, value in _settings(node)}
    return outline


def _settings(module) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name in DTYPES and value is not None:
            yield name, jnp.dtype(value).name
        elif not name.startswith("_") and name not in NO_SETTINGS and _is_plain(value):
            yield name, value


def _is_plain(value) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _shown(outline, path) -> str:
    value = outline.get(path, "missing")
    return f"a {value.__name__}" if isinstance(value, type) else str(value)
