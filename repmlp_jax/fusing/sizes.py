"""Sizes as integers: a float that equals an integer, or True, would otherwise go far before it fails."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex, TypeAlias

Sides: TypeAlias = SupportsIndex | Sequence[SupportsIndex]


def integer(value: Any, name: str) -> int:
    """An integer argument, Python's or NumPy's, as an int.

    Raises:
        TypeError: names the argument, if it is of another type.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be an integer, not {value!r}")


def positive(value: Any, name: str) -> int:
    """An `integer` from 1.

    Raises:
        TypeError, ValueError: names the argument.
    """
    if (number := integer(value, name)) < 1:
        raise ValueError(f"{name} must be 1 or more, not {number}")
    return number


def pair(value: Any, name: str) -> tuple[int, int]:
    """(height, width) or the like: two positive integers, or one for both.

    Raises:
        TypeError, ValueError: names the argument.
    """
    if isinstance(value, str) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        return (positive(value, name),) * 2
    if len(value) != 2:
        raise ValueError(f"{name} must be two integers, or one for both, not {value!r}")
    height, width = (positive(side, f"each of {name} {value}") for side in value)
    return height, width
