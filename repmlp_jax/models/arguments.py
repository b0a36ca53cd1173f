"""The arguments that a model was built with, as text, which `save_model` saves."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from repmlp_jax.models.precision import check_precision


def arguments_for(function: Callable, scope: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the arguments of a function from a constructor's `locals()`."""
    names = inspect.signature(function).parameters
    return {name: scope[name] for name in names if name in scope and name != "self"}


def arguments_text(model, scope: Mapping[str, Any]) -> str:
    """The constructor's arguments from its `locals()`, as JSON, since the attributes of a module must be hashable."""
    arguments = arguments_for(type(model).__init__, scope)
    check_precision([arguments.get("dtype"), arguments.get("param_dtype")], type(model).__name__)
    return json.dumps({name: _plain(value) for name, value in arguments.items() if name != "rngs"})


def arguments_from_text(text: str) -> dict:
    """The arguments of a text of `arguments_text`, for a call of the constructor."""
    return {name: _restored(name, value) for name, value in json.loads(text).items()}


def _plain(value):
    if isinstance(value, int | float | str | bool) or value is None:
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return jnp.dtype(value).name


def _restored(name, value):
    if name in ("dtype", "param_dtype") and value is not None:
        return jnp.dtype(value)
    if isinstance(value, list):
        return tuple(_restored("", item) for item in value)
    return value
