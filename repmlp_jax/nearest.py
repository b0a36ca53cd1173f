"""The known name that is nearest to an unknown one."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The most similar known name; None if no similarity, from 0 to 1, reaches `cutoff`."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """Looks up a name in a table.

    Raises:
        TypeError: if the name is not a string.
        ValueError: if there is no such name; the message lists the nearest name and all names.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a {what} must be a string, not {name!r}")
    if name not in table:
        raise ValueError(
            f"no {what} is called {name!r}; the nearest is {nearest(name, table)!r}. There are: {', '.join(table)}"
        )
    return table[name]
