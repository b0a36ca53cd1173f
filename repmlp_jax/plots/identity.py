"""A picture of the conversion of a convolution to an FC, by applying it to the identity (Section 3.2)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Num
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from repmlp_jax.fusing import algebra
from repmlp_jax.plots import places
from repmlp_jax.plots.palette import BLUE, NUMBERS, ORANGE, OTHERS

SIDE = 4
EXAMPLE = np.arange(1.0, 10.0, dtype=np.float32).reshape(3, 3)

# In inches: the size of the figure, the height of its middle line, and the side of a number's square.
WIDTH, HEIGHT, CENTRE, SQUARE = 11.8, 6.1, 3.0, 0.3


def identity_trick(
    kernel: Num[np.ndarray, "kh kw"] = EXAMPLE, pixels: Sequence[tuple[int, int]] = ((0, 0), (1, 2), (3, 3))
) -> Figure:
    """Draws the steps of `conv_to_fc` on a map of 4×4 pixels with one channel.

    A row of the identity matrix, as an image, has a single 1. The convolution of this image, flattened, is the row of
    the FC's kernel for that input pixel. (It is a column if the matrix is left of the vector, as in PyTorch.)

    Args:
        kernel: kernel of the convolution, of odd sides up to 3, without negative numbers.
        pixels: (row, column) of the 1 in each step, one to three.

    Returns:
        A figure with the kernels of the convolution and of the FC, and for each pixel the image and its convolution.

    Raises:
        TypeError: if the kernel does not hold real numbers, or a pixel is not a pair of integers.
        ValueError: if a side of the kernel is neither 1 nor 3, a number is negative or not finite, or there are no
            pixels, more than three, or one outside the map.
    """
    kernel, pixels = np.asarray(kernel), places.pixels(pixels)
    if not np.issubdtype(kernel.dtype, np.number) or np.iscomplexobj(kernel):
        raise TypeError(f"kernel must hold real numbers, not {kernel.dtype}")
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
    """Draws a pixel's image, its convolution, and the place of the result in the FC's kernel."""
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
    """Convolves an image with 'same' zero padding, without `conv_to_fc`."""
    layout = ("NHWC", "HWIO", "NHWC")
    image, kernel = jnp.asarray(image)[None, :, :, None], jnp.asarray(kernel)[:, :, None, None]
    return np.asarray(lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=layout))[0, :, :, 0]


def _label_pixels(axes):
    """Labels rows and columns of the FC's kernel with their pixels, and separates the rows of the map."""
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
    """Draws numbers in coloured squares, zeros in white; positions are in inches."""
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
    """Draws an arrow from the right side of a panel to a point."""
    style: dict[str, Any] = dict(arrowstyle="-|>", mutation_scale=16, linewidth=1.5, color=colour, shrinkA=5, shrinkB=3)
    figure.add_artist(ConnectionPatch((1, 0.5), point, start.transAxes, transform, **style))
