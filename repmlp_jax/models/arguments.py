"""The arguments that a model was built with, as text, which `save_model` saves."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repmlp_jax.models.precision import check_precision

DTYPES = ("dtype", "param_dtype")


def arguments_for(function: Callable, scope: Mapping[str, Any]) -> dict[str, Any]:
    """Selects the arguments of a function from a constructor's `locals()`."""
    names = inspect.signature(function).parameters
    return {name: scope[name] for name in names if name in scope and name != "self"}


def arguments_text(model, scope: Mapping[str, Any]) -> str:
    """The constructor's arguments from its `locals()`, as JSON, since the attributes of a module must be hashable.

    Raises:
        TypeError: if an argument cannot be stored as JSON.
    """
    arguments = arguments_for(type(model).__init__, scope)
    check_precision([arguments.get(name) for name in DTYPES], type(model).__name__)
    return json.dumps({name: _plain(name, value) for name, value in arguments.items() if name != "rngs"})


def arguments_from_text(text: str) -> dict:
    """The arguments of a text of `arguments_text`, for a call of the constructor."""
    return {name: _restored(name, value) for name, value in json.loads(text).items()}


def _plain(name, value):
    if value is None:
        return None
    if name in DTYPES:
        return jnp.dtype(value).name
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return value.tolist()
    if isinstance(value, int | float | str | bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    raise TypeError(f"{name} is a {type(value).__name__}, which a saved model cannot hold: use numbers and strings")


def _restored(name, value):
    if name in DTYPES and value is not None:
        return jnp.dtype(value)
    if isinstance(value, list):
        return tuple(_restored("", item) for item in value)
    return value
