"""A model remembers what it was built with, as text: so it can say what it is when it is saved."""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp


def arguments_for(function: Callable, scope: Mapping[str, Any]) -> dict[str, Any]:
    """What a function takes of a constructor's `locals()`, by name: to hand it on, all at once."""
    names = inspect.signature(function).parameters
    return {name: scope[name] for name in names if name in scope and name != "self"}


def arguments_text(model, scope: Mapping[str, Any]) -> str:
    """The constructor's arguments out of its `locals()`, as JSON: text, because a module's attributes are hashed."""
    arguments = arguments_for(type(model).__init__, scope)
    return json.dumps({name: _plain(value) for name, value in arguments.items() if name != "rngs"})


def arguments_from_text(text: str) -> dict:
    """The arguments, ready to call the constructor with."""
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
