"""Pixels as users give them."""

import operator
from typing import Any


def pixel(value: Any, name: str = "pixel") -> tuple[int, int]:
    """A pair of integers, (row, column).

    Raises:
        TypeError: if it is none; the message names the argument.
    """
    try:
        row, column = map(operator.index, value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}={value!r} must be (row, column), two integers") from None
    return row, column


def pixels(value: Any) -> list[tuple[int, int]]:
    """A list of pairs of integers; raises as `pixel`."""
    try:
        return [pixel(one, "a pixel") for one in value]
    except TypeError as error:
        raise TypeError(f"pixels={value!r} must be a list of (row, column), pairs of integers") from error
