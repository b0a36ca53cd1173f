"""A model remembers what it was built with, as text: so it can say what it is when it is saved."""

import inspect
import json

import jax.numpy as jnp


def arguments_text(model, scope: dict) -> str:
    """The constructor's arguments out of its `locals()`, as JSON: text, because a module's attributes are hashed."""
    names = inspect.signature(type(model).__init__).parameters
    return json.dumps({name: _plain(scope[name]) for name in names if name not in ("self", "rngs")})


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
