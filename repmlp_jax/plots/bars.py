"""A picture of a fuse report: parameters and multiply-accumulates before and after fusing."""

import functools
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from repmlp_jax.fusing.arguments import whole_number
from repmlp_jax.fusing.report import FuseReport, change
from repmlp_jax.plots.palette import BLUE, ORANGE

REST = "everything else"


def fuse_bars(report: FuseReport, depth: int | None = None) -> Figure:
    """Draws parameters and multiply-accumulates before and after fusing, for each block or larger part.

    Args:
        report: the report of `fuse_report`.
        depth: number of names of a block's path that name its part: with 1, `stages.0.1` and `stages.1.0` belong to
            `stages`; with 2, to `stages.0` and `stages.1`. None: every block is a part.

    Returns:
        A figure with two panels, or one if no multiply-accumulates are known. The last part sums everything outside
        the blocks, such as a classifier, and repeated calls of a block.

    Raises:
        TypeError: if `report` is not a FuseReport, or `depth` not an integer.
        ValueError: if there is nothing to fuse in the model, or `depth` is below 1.
    """
    if not isinstance(report, FuseReport):
        raise TypeError(f"report must be what fuse_report returns, not {type(report).__name__}")
    if depth is not None:
        whole_number("depth", depth, 1)
    if all(block.kept and not block.folded for block in report.blocks):
        raise ValueError("there is nothing to compare: the model is fused already, or holds no block that can be")
    counts = {"parameters": _parts(report, "parameters", depth)}
    if any(block.macs is not None for block in report.blocks):
        counts["multiply-accumulates"] = _parts(report, "macs", depth)
    if not any(any(parts[REST] or (1,)) for parts in counts.values()):
        for parts in counts.values():
            del parts[REST]
    names = list(counts["parameters"])
    figure = Figure(figsize=(6.2 * len(counts) + 1, 0.36 * len(names) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axes, (quantity, parts) in zip(panels, counts.items(), strict=True):
        whole = report.parameters if quantity == "parameters" else report.macs
        _draw(axes, names, parts)
        axes.set_title(f"{quantity}: {change(whole)}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _parts(report, quantity, depth) -> dict[str, tuple[int, int] | None]:
    """Name of each part → its counts before and after; None if they are not known."""
    parts: dict[str, tuple[int, int] | None] = {}
    for block in report.blocks:
        name = ".".join(block.path.split(".")[:depth])
        parts[name] = _sum(parts.get(name, (0, 0)), getattr(block, quantity))
    of_blocks: Any = functools.reduce(_sum, parts.values())
    whole = getattr(report, quantity)
    unknown = whole is None or of_blocks is None
    parts[REST] = None if unknown else (whole[0] - of_blocks[0], whole[1] - of_blocks[1])
    return parts


def _sum(one, other):
    return None if one is None or other is None else (one[0] + other[0], one[1] + other[1])


def _draw(axes, names, parts):
    """Draws two horizontal bars for each part, the first part on top, with their numbers."""
    known = {place: parts[name] for place, name in enumerate(names) if parts[name] is not None}
    for offset, index, colour, label in ((-0.2, 0, BLUE, "trained"), (0.2, 1, ORANGE, "fused")):
        values = [pair[index] for pair in known.values()]
        axes.barh([place + offset for place in known], values, 0.38, color=colour, label=label)
    largest = max((max(pair) for pair in known.values()), default=0) or 1
    for place, name in enumerate(names):
        end = max(parts[name] or (0,))
        axes.text(end + largest * 0.02, place, change(parts[name]), va="center", fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, largest * 1.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
