"""Arguments of public functions, checked against their annotations before anything is computed.

Sizes and counts may be values of NumPy and JAX; they become Python's, since a model keeps them as static attributes.
"""

import functools
import inspect
import operator
import reprlib
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

Function = TypeVar("Function", bound=Callable)
# Two sizes or counts, or one for both.
Pair = int | tuple[int, int]
# Any number of them, or one alone.
Sizes = int | Sequence[int]


def checked(function: Function) -> Function:
    """Converts the arguments of a function to what its annotations say.

    Integers, numbers, flags, names, pairs, sequences of these, dtypes and `nnx.Rngs` are checked; other arguments are
    passed as they are.

    Raises:
        TypeError: by the function that is returned, if an argument has a wrong type.
        ValueError: if it has the right type, but is negative, or is not a pair.
    """
    parameters = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        try:
            bound = parameters.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # Python's error names the function, too.
        for name, value in bound.arguments.items():
            bound.arguments[name] = converted(name, value, parameters.parameters[name].annotation)
        return function(*bound.args, **bound.kwargs)

    return typing.cast("Function", call)


def whole_number(name: str, value: Any, least: int = 0) -> int:
    """A whole number, of Python, NumPy or JAX, as Python's.

    Raises:
        TypeError: if it is none, or a flag; the message names the argument.
        ValueError: if it is below `least`.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r}") from None
    if number < least:
        raise ValueError(f"{name}={number} must not be below {least}")
    return number


def pair(value: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, int]:
    """(height, width), or whatever comes in pairs, from a pair or from one number for both.

    Raises:
        TypeError: if there are other things than integers.
        ValueError: if they are not two, or not positive.
    """
    first, second = _positives(value) if isinstance(value, Sequence) else (_positive(value),) * 2
    return first, second


def sizes(value: SupportsIndex | Sequence[SupportsIndex]) -> tuple[int, ...]:
    """Sizes from a sequence of them, or from one alone; raises as `pair`."""
    return _positives(value) if isinstance(value, Sequence) else (_positive(value),)


class _Kind(NamedTuple):
    """What an annotation means, in words, and the conversion of a value, which raises TypeError or ValueError."""

    meaning: str
    convert: Callable[[Any], Any]


def converted(name: str, value: Any, annotation: Any) -> Any:
    """The value of an argument as its annotation says; raises as `checked`."""
    options = _options(annotation)
    kind = _KINDS.get(options - {types.NoneType})
    if kind is None or (value is None and types.NoneType in options):
        return value
    try:
        return kind.convert(value.tolist() if isinstance(value, np.generic | np.ndarray | jax.Array) else value)
    except (TypeError, ValueError, AttributeError) as error:
        meaning = f"None or {kind.meaning}" if types.NoneType in options else kind.meaning
        wrong = ValueError if isinstance(error, ValueError) else TypeError
        given = " ".join(reprlib.repr(value).split())
        raise wrong(f"{name} must be {meaning}, not {given}") from error


def _options(annotation) -> frozenset:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return frozenset(typing.get_args(annotation) if is_union else (annotation,))


def _sequence(convert, value) -> tuple:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError
    return tuple(map(convert, value))


_integer = functools.partial(whole_number, "it")  # What is wrong with 0, if anything, the function itself says.
_positive = functools.partial(whole_number, "it", least=1)
_integers = functools.partial(_sequence, _integer)
_positives = functools.partial(_sequence, _positive)


def _number(value) -> float:
    if isinstance(value, str | bool):
        raise TypeError
    return float(value)


def _flag(value) -> bool:
    if value not in (True, False):
        raise TypeError
    return bool(value)


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError
    return str(value)


def _floating_dtype(value) -> jnp.dtype:
    value = jnp.result_type(float) if value is float else value  # float32 unless 64 bits are enabled, as everywhere
    if value is None or not jnp.issubdtype(jnp.dtype(value), jnp.floating):
        raise TypeError
    return jnp.dtype(value)


def _streams(value) -> nnx.Rngs:
    if not isinstance(value, nnx.Rngs):
        raise TypeError
    return value


_KINDS = {
    _options(annotation): _Kind(meaning, convert)
    for annotation, meaning, convert in (
        (int, "a positive integer", _integer),
        (float, "a number", _number),
        (bool, "True or False", _flag),
        (str, "a string", _text),
        (Pair, "two positive integers, or one for both", pair),
        (Sizes, "a positive integer, or a sequence of them", sizes),
        (Sequence[int], "a sequence of positive integers", _integers),
        (Sequence[Pair], "a sequence of pairs of positive integers", functools.partial(_sequence, pair)),
        (DTypeLike, "a floating-point dtype", _floating_dtype),
        (nnx.Rngs, "an nnx.Rngs, such as nnx.Rngs(0)", _streams),
    )
}
