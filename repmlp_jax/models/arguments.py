"""The arguments that a model was built with, as text, which `save_model` saves."""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repmlp_jax.models.precision import check_precision

DTYPES = ("dtype", "param_dtype")
Kind = inspect.Parameter


@dataclasses.dataclass(frozen=True)
class NotSavable:
    """Stands in place of the text of arguments that no file can hold.

    Attributes:
        reason: names the argument, and says what it is.
    """

    reason: str


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


def remembering(model_class: type) -> Callable:
    """The constructor of a class, which also sets `arguments` of the model to their text, or to `NotSavable`.

    Where a default is something that no file can hold, it is left to the class. Models of a subclass get nothing, as
    the arguments of their constructor are others.
    """
    construct: Callable = model_class.__init__  # type: ignore[misc]
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def constructed(self, *args, **kwargs):
        # Before the constructor can change them.
        arguments = _remembered(signature, self, args, kwargs) if type(self) is model_class else None
        construct(self, *args, **kwargs)
        if arguments is not None:
            if not isinstance(getattr(self, "arguments", ""), str | NotSavable):
                raise TypeError(
                    f"{model_class.__name__} has `arguments` of its own, where a class that is registered keeps the "
                    f"arguments of its constructor: rename them"
                )
            self.arguments = arguments

    return constructed


def _remembered(signature, model, args, kwargs) -> str | NotSavable | None:
    try:
        given = signature.bind(model, *args, **kwargs)
    except TypeError:
        return None  # Python's error is that of the constructor.
    passed = set(given.arguments)
    given.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(given.arguments.items())[1:]:
        parameter = signature.parameters[name]
        if parameter.kind is Kind.VAR_KEYWORD:
            arguments |= value
        elif parameter.kind not in (Kind.POSITIONAL_ONLY, Kind.VAR_POSITIONAL):
            arguments[name] = value
        elif name in passed:
            return NotSavable(f"{name} was passed without a name, and a saved model passes each argument by its name")
    arguments.pop("rngs", None)
    plain = {}
    for name, value in arguments.items():
        try:
            plain[name] = _plain(name, value)
        except TypeError as error:
            if name not in signature.parameters or value is not signature.parameters[name].default:
                return NotSavable(str(error))
    check_precision([plain.get(name) for name in DTYPES], type(model).__name__)
    return json.dumps(plain)


def _plain(name, value):
    if value is None:
        return None
    if name in DTYPES:
        return jnp.dtype(value).name
    if isinstance(value, np.generic | np.ndarray | jax.Array) and not isinstance(value, jax.core.Tracer):
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
