"""The pictures of `inference.py` and `roofline.py`, which the pages of the docs draw from the results, too."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repmlp_jax.plots.palette import BLUE, ORANGE, OTHERS

KINDS = ("FC3", "Global Perceptron", "FFN", "convolutions", "stem", "classifier")
COLOURS = dict(zip(KINDS, (BLUE, ORANGE, *OTHERS), strict=True))


def draw_speeds(measured: dict) -> Figure:
    """Bars of images a second, with the fastest and slowest run, a panel for each model and batch size."""
    panels = [
        (name, batch, rows["seconds"])
        for name, batches in measured.items()
        if isinstance(batches, dict)
        for batch, rows in batches.items()
        if batch.startswith("batch")
    ]
    names = list(dict.fromkeys(name for name, *_ in panels))
    columns = max(sum(1 for panel in panels if panel[0] == name) for name in names)
    figure = Figure(figsize=(3 * columns, 2.2 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), columns, squeeze=False)
    for index, (name, batch, seconds) in enumerate(panels):
        axes = grid[names.index(name)][index % columns]
        count = int(batch.split()[1])
        speeds = [count / row["median"] for row in seconds.values()]
        spread = [
            [count / row["median"] - count / row["maximum"] for row in seconds.values()],
            [count / row["minimum"] - count / row["median"] for row in seconds.values()],
        ]
        colours = [BLUE if "official" not in form and "torch" not in form else ORANGE for form in seconds]
        if name == "others":
            colours = [BLUE if "ours" in form else ORANGE for form in seconds]
        axes.barh(range(len(speeds)), speeds, xerr=spread, color=colours, error_kw=dict(elinewidth=1, capsize=2))
        axes.set_yticks(range(len(speeds)), list(seconds) if index % columns == 0 else [], fontsize=8)
        axes.invert_yaxis()
        axes.set_title(f"{name}\n{batch}", fontsize=8)
        axes.set_xlabel("images/s", fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
    key = [Patch(color=BLUE, label="repmlp_jax"), Patch(color=ORANGE, label="PyTorch")]
    figure.legend(handles=key, loc="outside upper center", ncols=2, frameon=False)
    return figure


def draw_roofline(measured: dict, rate: float, bandwidth: float) -> Figure:
    """The roofline with every kind of part: multiply-accumulates per second over multiply-accumulates per byte."""
    rows, columns = -(-len(measured) // 2), min(len(measured), 2)
    figure = Figure(figsize=(5 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for axes in panels[len(measured) :]:
        axes.set_axis_off()
    intensities = np.array([0.1, rate / bandwidth, 1000])
    for axes, (name, row) in zip(panels, measured.items(), strict=False):
        axes.loglog(intensities, np.minimum(rate, intensities * bandwidth) / 1e9, color="black", linewidth=1)
        # Timed one by one the parts take longer than together, so their shares are of their own sum.
        total = sum(part["seconds"] for part in row["parts"].values())
        for kind, part in row["parts"].items():
            axes.loglog(
                part["macs"] / part["bytes"],
                part["macs"] / part["seconds"] / 1e9,
                "o",
                color=COLOURS[kind],
                markersize=4 + 16 * part["seconds"] / total,
                label=f"{kind}: {part['seconds'] / total:.0%} of the parts' time",
            )
        axes.set_title(f"{name}, batch {row['batch_size']}", fontsize=10)
        axes.set_xlabel("multiply-accumulates per byte")
        axes.set_ylabel("10⁹ multiply-accumulates/s")
        axes.grid(alpha=0.3)
        legend = axes.legend(fontsize=8, loc="lower right")
        for handle in legend.legend_handles:
            handle.set_markersize(6)
    return figure
