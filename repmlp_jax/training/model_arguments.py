"""Checks `config.model_arguments` against the constructor of the model."""

import inspect
import numbers
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from repmlp_jax.models.registry import MODELS
from repmlp_jax.nearest import nearest

DTYPES = ("dtype", "param_dtype")


def arguments_of(model_class: type) -> dict[str, Any]:
    """The arguments of a model's constructor: name → annotation."""
    parameters = inspect.signature(model_class.__init__).parameters.values()  # type: ignore[misc]
    return {parameter.name: parameter.annotation for parameter in parameters if parameter.name not in ("self", "rngs")}


def problems_of_arguments(model: Any, arguments: ConfigDict) -> Iterator[str]:
    """What is wrong with the arguments of a model in a configuration."""
    if not isinstance(model, str) or model not in MODELS:
        return  # create_model names the nearest
    model_class, _ = MODELS[model]
    known = arguments_of(model_class)
    for name in sorted(arguments):
        value = arguments[name]
        if name not in known:
            yield f"{model_class.__name__} has no argument {name!r}; the nearest is {nearest(name, known)!r}"
        elif name in DTYPES:
            if value is not None and not _is_float(value):
                yield f"model_arguments.{name}={value!r} is no dtype of floating-point numbers, such as 'bfloat16'"
        elif isinstance(value, list | tuple) and not value:
            yield f"model_arguments.{name}={value!r} must not be empty"
        elif _is_negative(value):
            yield f"model_arguments.{name}={value!r} must not be negative"
        elif not _fits(value, known[name]):
            yield f"model_arguments.{name}={value!r} must be {_described(known[name])}"


def _is_float(value) -> bool:
    try:
        return jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        return False


def _is_negative(value) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_negative, value))
    return isinstance(value, numbers.Real) and value < 0


def _fits(value, annotation) -> bool:
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    is_sequence = isinstance(value, list | tuple)
    if origin is tuple and ... not in inner:
        if set(inner) == {int} and _fits(value, int):  # one integer stands for both sides
            return True
        return is_sequence and len(value) == len(inner) and all(map(_fits, value, inner))
    if origin in (tuple, Sequence):
        return is_sequence and all(_fits(item, inner[0]) for item in value)
    if annotation in (int, typing.SupportsIndex):
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if annotation is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool)
    return isinstance(value, annotation) if isinstance(annotation, type) else True


def _described(annotation) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not typing.get_args(annotation) else str(annotation)
    return text.replace("collections.abc.", "").replace("typing.", "")
