"""What became faster or slower between two results?

    python benchmarks/compare.py OLD.json NEW.json

Every row with a median, a minimum and a maximum that both files have is compared. A change counts where the ranges of
the runs do not overlap and the medians differ by more than 5 %; if anything became slower, the exit code is 1. Absolute
seconds compare only where both ran on one machine, so ratios are compared where the files have them.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

SMALLEST_CHANGE = 0.05


def main():
    """Prints the changes; the exit code says whether anything became slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (options.old, options.new))
    for name in ("machine", "devices"):
        before, after = (result["provenance"][name] for result in (old, new))
        if before != after:
            print(f"another {name}: {before} and {after}; seconds do not compare, ratios do")
    slower = [line for line in changes(old, new) if print(line) or "slower" in line]
    sys.exit(1 if slower else 0)


def changes(old: dict, new: dict) -> Iterator[str]:
    """A line for each timing in both results that changed, and for each that is in one alone."""
    before, after = dict(timings(old)), dict(timings(new))
    for path in sorted(before.keys() | after.keys()):
        if path not in before or path not in after:
            yield f"{' / '.join(path)}: only in the {'new' if path in after else 'old'} result"
            continue
        one, other = before[path], after[path]
        ratio = other["median"] / one["median"]
        apart = other["minimum"] > one["maximum"] or other["maximum"] < one["minimum"]
        if apart and abs(ratio - 1) > SMALLEST_CHANGE:
            # A rate, such as steps a second, is better where it is larger.
            is_rate = any("per_second" in part or "a second" in part for part in path)
            verdict = "slower" if (ratio > 1) != is_rate else "faster"
            factor = max(ratio, 1 / ratio)
            yield f"{' / '.join(path)}: {factor:.2f} × {verdict} ({one['median']:.4g} → {other['median']:.4g})"


def timings(result: dict, path: tuple = ()) -> Iterator[tuple[tuple, dict]]:
    """Every row with a median and its spread, with the keys that lead to it."""
    if {"median", "minimum", "maximum"} <= result.keys():
        yield path, result
        return
    for key, value in result.items():
        if isinstance(value, dict) and key != "provenance":
            yield from timings(value, (*path, key))


if __name__ == "__main__":
    main()
