"""What differs between two files of results."""

import json
from collections.abc import Iterator
from pathlib import Path

SMALLEST_CHANGE = 0.05
TIMES = "estimated ms", "ms of bytes at the bandwidth"
PEAK = "peak MB"


def read(path: Path) -> dict[str, dict]:
    """The rows of a file by name.

    Raises:
        OSError: if it cannot be read.
        ValueError: if a line is not a result.
    """
    rows = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            row = json.loads(line)
            rows[row["row"]] = row
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is not a result of compile_for.py: {line:.60}") from error
    return rows


def changes(old: dict[str, dict], new: dict[str, dict]) -> Iterator[tuple[str, bool]]:
    """Yields a line for each figure that changed, and whether that is for the worse: a time or the peak of memory."""
    yield from ((f"another {line}", False) for line in _compilers(old, new))
    for name in {**old, **new}:
        if name not in old or name not in new:
            yield f"{name}: only in the {'new' if name in new else 'old'} file", False
        elif "failed" in old[name] or "failed" in new[name]:
            if "failed" not in old[name]:
                yield f"{name}: fails now: {new[name]['failed']}", True
            elif "failed" not in new[name]:
                yield f"{name}: failed before", False
        else:
            yield from _of_row(name, figures(old[name]), figures(new[name]))


def figures(row: dict) -> dict[str, float]:
    """The figures of a row that are compared; a program without estimates has none of them."""
    found = {TIMES[0]: row["estimated_ms"]} if row["estimated_ms"] is not None else {}
    return found | {
        TIMES[1]: row["traffic"]["ms_at_bandwidth"],
        PEAK: row["peak_bytes"] / 1e6,
        "padded over plain bytes of the parameters": row["parameters"]["padded_over_plain"],
        "padded over plain bytes of the traffic": row["traffic"]["padded_over_plain"],
        f"share of copies, of {row['shares_of']}": row["copies_share"],
        "kernels": row["kernels"],
        **{f"{kind}, number": each["count"] for kind, each in row["collectives"].items()},
        **{f"{kind}, MB": each["bytes"] / 1e6 for kind, each in row["collectives"].items()},
    }


def _of_row(name, before, after):
    for figure in {**before, **after}:
        one, other = before.get(figure, 0.0), after.get(figure, 0.0)
        if abs(other - one) <= SMALLEST_CHANGE * one:
            continue
        factor = (
            f" ({max(one, other) / min(one, other):.2f} × {'more' if other > one else 'less'})" if one * other else ""
        )
        yield f"{name}: {figure} {one:.4g} → {other:.4g}{factor}", other > one and figure in (*TIMES, PEAK)


def _compilers(old, new) -> Iterator[str]:
    """The versions of packages that the rows of both files were made with, where they differ."""
    before, after = ([row["provenance"]["versions"] for row in rows.values()] for rows in (old, new))
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin"):
        one, other = ({versions.get(package) for versions in each} for each in (before, after))
        if one != other:
            yield f"{package}: {_listed(one)} and {_listed(other)}; figures may differ by that alone"


def _listed(versions):
    return ", ".join(sorted(map(str, versions)))
