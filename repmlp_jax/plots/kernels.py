"""Pictures of FC3's kernel: the receptive fields of output pixels, and the part of the convolutions."""

import math
from collections.abc import Sequence

import numpy as np
from flax import nnx
from jaxtyping import Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import NullFormatter

from repmlp_jax.blocks.repmlp import FusedRepMLP, RepMLP
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, RepMLPNetBlock
from repmlp_jax.fusing import algebra
from repmlp_jax.fusing.arguments import whole_number
from repmlp_jax.plots import places
from repmlp_jax.plots.palette import MAGNITUDES, ZERO

TRAINED = RepMLP | RepMLPNetBlock
FUSED = FusedRepMLP | FusedRepMLPNetBlock

# Weights below a thousandth of the largest share its colour; otherwise one outlier would stretch the whole scale.
DECADES = 3

# Longer side of a panel, in inches.
LONGER_SIDE = 2.4


def fc3_parts(block: TRAINED) -> dict[str, Float[np.ndarray, "g h w c h w o"]]:
    """The parts of a block's fused FC3.

    Args:
        block: a trained block. The share-sets of a RepMLPNetBlock become groups of one channel.

    Returns:
        "trained": FC3's kernel with its norm folded in; "convolutions": the kernel of all convolutions and their norms,
        merged and converted to an FC; "fused": their sum. Each has the axes (group, input row, input column, input
        channel of the group, output row, output column, output channel of the group).

    Raises:
        TypeError: if `block` is not a block, or is fused.
        ValueError: if the block has no FC3, or no convolutions.
    """
    if isinstance(block, FUSED):
        raise TypeError(
            f"a {type(block).__name__} is fused: its kernel no longer holds the separate parts. "
            f"Pass the trained model (the folder model of a run), or draw the fused kernels by plot_kernels"
        )
    if not isinstance(block, TRAINED):
        raise TypeError(f"takes a RepMLP or RepMLPNetBlock, not a {type(block).__name__}")
    if isinstance(block, RepMLP) and block.partition_perceptron is None:
        raise ValueError("this block has no FC3 to which the convolutions are added: its partition_perceptron is None")
    if not block.local_perceptron:
        raise ValueError("this block has no convolutions: its fused FC3 is the trained one")
    without_convolutions = nnx.clone(block)
    without_convolutions.local_perceptron = nnx.Dict()
    fused = kernel_by_pixel(block.fused())
    convolutions = [(conv.conv.kernel[...], conv.norm) for conv in block.local_perceptron.values()]
    merged, _ = algebra.merge_convolutions(convolutions)
    return {
        "trained": kernel_by_pixel(without_convolutions.fused()),
        "convolutions": np.asarray(algebra.conv_to_fc(merged, fused.shape[1:3], fused.shape[0])),
        "fused": fused,
    }


def fc3_kernels(
    block: TRAINED, pixel: tuple[int, int] | None = None, *, input_channel: int | None = None, output_channel: int = 0
) -> Figure:
    """Draws FC3's weights from an input channel to an output point: trained, convolutions, and fused (Figure 5).

    The panels show magnitudes on one logarithmic scale; the fused weights are the signed sum of the other two. (The
    paper divides by the smallest weight, which only shifts the scale.)

    Args:
        block: a trained block, as in `fc3_parts`.
        pixel: (row, column) of the output point in its partition; None: the middle.
        input_channel: the input channel; None: the first of the output channel's group.
        output_channel: channel of the output point. For a RepMLPNetBlock both channels are numbers of share-sets.

    Raises:
        TypeError: as `fc3_parts`, or if a pixel or a channel is not of integers.
        ValueError: as `fc3_parts`; if there is no such pixel or channel, the channels are in different groups, or the
            weights are not finite or all zero.
    """
    output_channel = whole_number("output_channel", output_channel)
    if input_channel is not None:
        input_channel = whole_number("input_channel", input_channel)
    point = pixel if pixel is None else places.pixel(pixel)
    parts = fc3_parts(block)
    groups, h, w, c, *_, o = parts["fused"].shape
    point = _checked((h // 2, w // 2) if point is None else point, h, w)
    if not 0 <= output_channel < groups * o:
        raise ValueError(f"output_channel={output_channel}: there are {groups * o}, from 0")
    group = output_channel // o
    input_channel = group * c if input_channel is None else input_channel
    if input_channel // c != group:
        raise ValueError(
            f"input_channel={input_channel} is not in the group of output_channel={output_channel}, which sees "
            f"{'channel' if c == 1 else 'channels'} {_range(group * c, c)}"
        )
    titles = ("FC3 as trained", "merged convolutions", "fused: the sum of both")
    maps = [np.abs(part[group, :, :, input_channel % c, *point, output_channel % o]) for part in parts.values()]
    figure, panels = _figure(1, 3, (h, w))
    figure.suptitle(
        f"What output point (row {point[0]}, column {point[1]}, channel {output_channel}) sees of input channel "
        f"{input_channel}"
    )
    _draw(figure, panels, maps, [point] * 3, titles, "magnitude of the weight")
    return figure


def receptive_fields(block: TRAINED | FUSED, pixels: Sequence[tuple[int, int]] | None = None) -> Figure:
    """Draws the receptive fields of output pixels of a fused block.

    Args:
        block: a block, trained or fused.
        pixels: (row, column) of each output pixel in its partition; None: the corners, the middles of the sides and the
            centre.

    Returns:
        A figure with one panel for each pixel: the root mean square of the weights from each input pixel to it, over
        all connected pairs of channels.

    Raises:
        TypeError: if `block` is not a block, or a pixel not a pair of integers.
        ValueError: if a pixel is not in the partition, there are none, or the weights are not finite or all zero.
    """
    if not isinstance(block, TRAINED | FUSED):
        raise TypeError(f"takes a RepMLP or RepMLPNetBlock, fused or not, not a {type(block).__name__}")
    kernel = kernel_by_pixel(block if isinstance(block, FUSED) else block.fused())
    h, w = kernel.shape[1:3]
    if pixels is None:
        rows, columns = (sorted({0, side // 2, side - 1}) for side in (h, w))
        pixels = [(row, column) for row in rows for column in columns]
        shape = (1, len(pixels)) if w == 1 else (len(rows), len(columns))
    else:
        pixels = [_checked(pixel, h, w) for pixel in places.pixels(pixels)]
        shape = (-(-len(pixels) // 4), min(len(pixels), 4))
    if not pixels:
        raise ValueError("there is no pixel to show: pixels is empty")
    maps = [np.sqrt(np.square(kernel[:, :, :, :, row, column]).mean((0, 3, 4))) for row, column in pixels]
    titles = [f"row {row}, column {column}" for row, column in pixels]
    figure, panels = _figure(*shape, (h, w))
    figure.suptitle("What output pixels see of their partition")
    _draw(figure, panels, maps, pixels, titles, "root mean square of the weights")
    return figure


def kernel_by_pixel(fused: FUSED) -> Float[np.ndarray, "g h w c h w o"]:
    """FC3's kernel with the axes of `fc3_parts`, in float32 or wider."""
    kernel = np.asarray(fused.kernel_by_pixel())
    return kernel.astype(np.promote_types(kernel.dtype, np.float32))


def _checked(pixel, h, w) -> tuple[int, int]:
    row, column = pixel
    if not (0 <= row < h and 0 <= column < w):
        raise ValueError(f"pixel {pixel} is not in a partition of rows {_range(0, h)}, columns {_range(0, w)}")
    return row, column


def _range(first, count) -> str:
    return f"{first}" if count == 1 else f"{first} to {first + count - 1}"


def _figure(rows, columns, partition_size):
    """Creates panels with the proportions of a partition."""
    h, w = partition_size
    inches = LONGER_SIDE / max(h, w)
    # A panel needs room for its title, which may be wider than itself; the figure needs room for its labels.
    width, height = max(w * inches + 0.15, 1.9), max(h * inches, 0.5) + 0.38
    figure = Figure(figsize=(max(columns * width + 1.5, 6.2), rows * height + 1.15), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels[-1]:
        axes.set_xlabel("input column")
    for axes in panels[:, 0]:
        axes.set_ylabel("input row")
    return figure, panels.ravel()


def _draw(figure, panels, maps, pixels, titles, label):
    """Draws maps of magnitudes on one logarithmic scale, each with a frame around its output pixel."""
    norm, extend = scale_of(maps)
    for axes, magnitudes, pixel, title in zip(panels, maps, pixels, titles, strict=False):
        image = axes.imshow(
            np.ma.masked_equal(magnitudes, 0), norm=norm, cmap=MAGNITUDES, interpolation="nearest", origin="upper"
        )
        h, w = magnitudes.shape
        axes.set_facecolor(ZERO)
        axes.set_title(title, fontsize="medium")
        axes.set_xticks(range(0, w, -(-w // 8)))
        axes.set_yticks(range(0, h, -(-h // 8)))
        axes.add_patch(_frame(pixel, LONGER_SIDE * 72 / max(h, w)))
    for axes in panels[len(maps) :]:
        axes.set_axis_off()
    draw_colour_bar(figure, image, panels, label, extend)
    key = [Patch(facecolor="white", edgecolor="black", label="the output pixel's own place")]
    if any((magnitudes == 0).any() for magnitudes in maps):
        key.append(Patch(facecolor=ZERO, edgecolor="grey", label="exactly zero"))
    figure.legend(handles=key, loc="outside lower center", ncols=2, frameon=False)


def draw_colour_bar(figure, image, panels, label, extend):
    """Draws the colour bar of a logarithmic scale, beside the panels."""
    ticks = _ticks(image.norm)
    bar = figure.colorbar(image, ax=panels.tolist(), label=label, extend=extend, aspect=30)
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.minorformatter = NullFormatter()


def _frame(pixel, points):
    """A frame around a pixel with a side of `points`, white on black to be visible on every colour."""
    row, column = pixel
    line = min(max(points / 8, 0.5), 1.5)
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="white", linewidth=line, zorder=3)
    frame.set(path_effects=[Stroke(linewidth=2.4 * line, foreground="black"), Normal()], clip_on=False)
    return frame


def scale_of(maps) -> tuple[LogNorm, str]:
    """A logarithmic scale for all maps, and its end at which values are clipped."""
    values = np.concatenate([np.ravel(magnitudes) for magnitudes in maps])
    if not np.isfinite(values).all():
        raise ValueError(f"{np.sum(~np.isfinite(values))} of the {values.size} weights to show are not finite")
    values = values[values > 0]
    if not values.size:
        raise ValueError("all weights to show are zero")
    # Room for ticks, also where all weights are equal.
    lowest = min(max(values.min(), values.max() / 10**DECADES), values.max() / 2)
    return LogNorm(lowest, values.max()), "min" if values.min() < lowest else "neither"


def _ticks(norm) -> list[float]:
    """Three to nine round numbers on the scale: powers of ten or, on a shorter scale, multiples of them."""
    exponents = range(math.floor(math.log10(norm.vmin)), math.ceil(math.log10(norm.vmax)) + 1)
    ticks: list[float] = []
    for factors in ([1], [1, 3], [1, 2, 5], range(1, 10), np.arange(10, 100) / 10):
        if len(ticks) < 3:
            numbers = [float(f"{factor}e{exponent}") for exponent in exponents for factor in factors]
            ticks = [number for number in numbers if norm.vmin <= number <= norm.vmax]
    return ticks[:: -(-len(ticks) // 9)]
