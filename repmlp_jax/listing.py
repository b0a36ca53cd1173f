"""Long lists in messages of one line."""

from collections.abc import Iterable


def listed(things: Iterable, shown: int = 5) -> str:
    """The first things with commas between, and how many more there are; empty if there are none."""
    names = list(map(str, things))
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
