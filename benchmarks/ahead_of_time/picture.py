"""The picture of a file of results."""

from collections.abc import Callable

from matplotlib.figure import Figure

from repmlp_jax.plots.palette import BLUE, ORANGE, OTHERS

# What a bar shows: label, colour, milliseconds of a row.
BARS: tuple[tuple[str, str, Callable[[dict], float | None]], ...] = (
    ("estimated by the compiler", BLUE, lambda row: row["estimated_ms"]),
    ("bytes, in tiles, at the bandwidth", OTHERS[0], lambda row: row["traffic"]["ms_at_bandwidth"]),
    ("ideal: multiply-accumulates at the peak, or the parameters' bytes", ORANGE, lambda row: row["ideal_ms"]),
)


def draw(rows: dict[str, dict], title: str) -> Figure:
    """Draws each program's estimated time, the time of its bytes, and the ideal, on a logarithmic axis.

    Args:
        rows: name → a result that did not fail; at least one.
        title: says what the estimates are.
    """
    bars = [bar for bar in BARS if any(bar[2](row) is not None for row in rows.values())]
    height = 0.8 / len(bars)
    figure = Figure(figsize=(9.5, 0.45 * len(rows) + 1.6), layout="constrained")
    axes = figure.subplots()
    for number, (label, colour, milliseconds) in enumerate(bars):
        places = [place + (number - (len(bars) - 1) / 2) * height for place in range(len(rows))]
        values = [milliseconds(row) for row in rows.values()]
        drawn = axes.barh(places, [value or 0 for value in values], height * 0.9, color=colour, label=label)
        axes.bar_label(drawn, [f"{value:.3g}" if value else "" for value in values], padding=2, fontsize=7)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.08)
    axes.set_xlabel("time (ms)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure
