"""What somebody may have meant who wrote a name that does not exist."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def nearest(name: str, known: Iterable[str], cutoff: float = 0.0) -> str | None:
    """The known name that is most similar; None if none is at least as similar as `cutoff`, a share from 0 to 1."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def lookup(table: Mapping[str, Value], name: str, what: str) -> Value:
    """The entry of that name.

    Raises:
        ValueError: if there is none; the message says of what, and has the nearest name and all names.
    """
    if name not in table:
        raise ValueError(
            f"no {what} is called {name!r}; the nearest is {nearest(name, table)!r}. There are: {', '.join(table)}"
        )
    return table[name]
