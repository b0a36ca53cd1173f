"""A picture of how a convolution becomes a fully-connected layer: it is applied to the identity (Section 3.2)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from repmlp_jax.fusing import algebra
from repmlp_jax.plots.palette import BLUE, NUMBERS, ORANGE, OTHERS

SIDE = 4
EXAMPLE = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)

# In inches: the figure, the height of its middle line, and a square that holds a number.
WIDTH, HEIGHT, CENTRE, SQUARE = 11.8, 6.1, 3.0, 0.3


def identity_trick(
    kernel: Num[np.ndarray, "kh kw"] = EXAMPLE, pixels: Sequence[tuple[int, int]] = ((0, 0), (1, 2), (3, 3))
) -> Figure:
    """Draws, step by step on a map of 4×4 pixels with one channel, how `conv_to_fc` makes an FC of a convolution.

    A row of the identity matrix, as an image, has a single 1; what the convolution makes of it, laid out in a row, is
    the row of the FC's kernel that belongs to that input pixel. (Where the matrix stands left of the vector, as in
    PyTorch, it is a column.)

    Args:
        kernel: the convolution's, of odd sides up to 3; none of its numbers may be negative, so that one scale from
            white shows them.
        pixels: (row, column) of the 1 in each step, up to three.

    Returns:
        A figure whose panels are the convolution's kernel, the FC's, and for each pixel the image and what the
        convolution makes of it.

    Raises:
        ValueError: if a side of the kernel is neither 1 nor 3, a number is negative or not finite, or there are no
            pixels, more than three, or one outside of the map.
    """
    kernel = np.asarray(kernel)
    if any(side not in (1, 3) for side in kernel.shape) or kernel.ndim != 2:
        raise ValueError(f"the picture has room for a kernel of 3×3 or smaller odd sides, not of shape {kernel.shape}")
    if not np.isfinite(kernel).all() or (kernel < 0).any():
        raise ValueError("the kernel to draw must hold finite numbers that are not negative")
    if not 1 <= len(pixels) <= 3 or not all(0 <= row < SIDE and 0 <= column < SIDE for row, column in pixels):
        raise ValueError(f"pixels={tuple(pixels)} are not one to three pixels of rows and columns 0 to {SIDE - 1}")
    matrix = np.asarray(algebra.conv_to_fc(jnp.asarray(kernel[:, :, None, None]), (SIDE, SIDE))).reshape(
        SIDE**2, SIDE**2
    )
    scale = Normalize(0, kernel.max() or 1)
    figure = Figure(figsize=(WIDTH, HEIGHT))
    of_kernel = _panel(figure, 0.35, CENTRE, kernel, scale)
    of_kernel.set_title("kernel of the\nconvolution", fontsize="medium", pad=8)
    of_matrix = _panel(figure, 6.15, CENTRE, matrix, scale)
    _label_pixels(of_matrix)
    middles = CENTRE + 1.85 * (np.arange(len(pixels)) - (len(pixels) - 1) / 2)
    for pixel, middle, colour in zip(pixels, middles[::-1], (BLUE, ORANGE, *OTHERS), strict=False):
        _draw_step(figure, middle, of_matrix, kernel, pixel, scale, colour)
    return figure


def _draw_step(figure, middle, of_matrix, kernel, pixel, scale, colour):
    """One pixel's image, what the convolution makes of it, and where that is in the FC's kernel."""
    row = pixel[0] * SIDE + pixel[1]
    image = np.zeros((SIDE, SIDE), kernel.dtype)
    image[pixel] = 1
    of_image = _panel(figure, 2.0, middle, image, Normalize(0, 1))
    of_response = _panel(figure, 4.05, middle, _convolved(image, kernel), scale)
    of_image.set_title(f"row {row} of the identity,\nas an image", fontsize="medium", color=colour)
    of_response.set_title(f"convolved: row {row}\nof the FC's kernel", fontsize="medium", color=colour)
    for axes in (of_image, of_response):
        axes.spines[:].set(color=colour, linewidth=2.5)
    frame = Rectangle((-0.5, row - 0.5), SIDE**2, 1, fill=False, edgecolor=colour, linewidth=2.5, zorder=3)
    frame.set_clip_on(False)
    of_matrix.add_patch(frame)
    _arrow(figure, of_image, (0, 0.5), of_response.transAxes, colour)
    _arrow(figure, of_response, (-0.6, row), of_matrix.transData, colour)


def _convolved(image, kernel):
    """The image convolved with 'same' zero padding: by a convolution, not by `conv_to_fc`."""
    layout = ("NHWC", "HWIO", "NHWC")
    image, kernel = jnp.asarray(image)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None]
    return np.asarray(lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout))[0, :, :, 0]


def _label_pixels(axes):
    """Names the pixels that rows and columns of the FC's kernel belong to, and parts the rows of the map."""
    axes.set_title("kernel of the FC: output = input · kernel", fontsize="medium", pad=8)
    names = [f"{row},{column}" for row in range(SIDE) for column in range(SIDE)]
    axes.set_xticks(range(SIDE**2), names, rotation=90, fontsize="small")
    axes.set_yticks(range(SIDE**2), names, fontsize="small")
    axes.tick_params(length=0, labelleft=False, labelright=True)
    axes.set_xlabel("output pixel (row,column)")
    axes.set_ylabel("input pixel (row,column)")
    axes.yaxis.set_label_position("right")
    for line in range(SIDE, SIDE**2, SIDE):
        axes.axhline(line - 0.5, color="0.4", linewidth=0.8)
        axes.axvline(line - 0.5, color="0.4", linewidth=0.8)


def _panel(figure, left, middle, numbers, scale):
    """Numbers in coloured squares; zeros stay white. Places are in inches."""
    width, height = numbers.shape[1] * SQUARE, numbers.shape[0] * SQUARE
    axes = figure.add_axes((left / WIDTH, (middle - height / 2) / HEIGHT, width / WIDTH, height / HEIGHT))
    axes.imshow(np.ma.masked_equal(numbers, 0), norm=scale, cmap=NUMBERS, interpolation="nearest", origin="upper")
    axes.set_xticks([])
    axes.set_yticks([])
    for (row, column), number in np.ndenumerate(numbers):
        colour = "0.6" if number == 0 else "white" if scale(number) < 0.5 else "black"
        axes.text(column, row, f"{number:.3g}", ha="center", va="center", fontsize=9, color=colour)
    return axes


def _arrow(figure, start, point, transform, colour):
    """An arrow from the right of a panel to a point."""
    figure.add_artist(
        ConnectionPatch(
            (1, 0.5),
            point,
            start.transAxes,
            transform,
            arrowstyle="-|>",
            mutation_scale=16,
            linewidth=1.5,
            color=colour,
            shrinkA=5,
            shrinkB=3,
        )
    )
