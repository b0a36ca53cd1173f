"""The lists among a model's arguments that hold an entry for each stage."""

from collections.abc import Sequence


def check_stages(**lists: Sequence):
    """Raises ValueError unless all lists, given by their names, are equally long and not empty."""
    lengths = [len(entries) for entries in lists.values()]
    if len(set(lengths)) > 1 or not all(lengths):
        names, counts = (_listed([*map(str, words)]) for words in (lists, lengths))
        many = "equally many, at least one" if len(lists) > 1 else "at least one"
        raise ValueError(f"{names} name {counts} stages: they must name {many}")


def _listed(words: list[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
