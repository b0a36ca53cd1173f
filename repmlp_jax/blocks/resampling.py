"""Adaptive average pooling and bilinear interpolation, as in PyTorch.

Both are separable and linear, so each is a product with one small constant matrix for rows and one for columns.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from repmlp_jax.fusing.algebra import widened


def adaptive_average(x: Float[Array, "N H W C"], size: Sequence[int]) -> Float[Array, "N h w C"]:
    """Averages maps over h × w windows, like PyTorch's AdaptiveAvgPool2d.

    Window i of h starts at row floor(i·H / h) and ends before row ceil((i + 1)·H / h). If h does not divide H, windows
    overlap or differ in height by a row.

    Args:
        x: the maps.
        size: (h, w) of the result.
    """
    return _resample(x, *(_averages(*sides) for sides in zip(x.shape[1:3], size, strict=True)))


def enlarge(x: Float[Array, "N H W C"], size: Sequence[int]) -> Float[Array, "N h w C"]:
    """Interpolates maps bilinearly with aligned corners, like PyTorch's interpolate with align_corners=True.

    A side of one pixel is repeated.

    Args:
        x: the maps.
        size: (h, w) of the result.
    """
    if x.shape[1:3] == tuple(size):
        return x
    return _resample(x, *(_interpolations(*sides) for sides in zip(x.shape[1:3], size, strict=True)))


def beside_each_other(maps: Sequence[Float[Array, "N _ _ _"]]) -> Float[Array, "N H W C"]:
    """Concatenates the channels of maps, all enlarged to the size of the first."""
    first, *others = maps
    return jnp.concatenate([first, *(enlarge(other, first.shape[1:3]) for other in others)], axis=-1)


def convolve_enlarged(
    x: Float[Array, "N h w C"], kernel: Float[Array, "kh kw C O"], size: Sequence[int]
) -> Float[Array, "N H W O"]:
    """Enlarges maps and convolves them with stride 1, 'same' padding and a kernel of odd sides.

    Both are linear, so what each tap of the kernel makes of the few pixels is enlarged and moved by one matrix.
    """
    n, h, w, _ = x.shape
    kh, kw, _, features = kernel.shape
    products = jnp.einsum("nhwc,ijco->nihjwo", x, kernel).reshape(n, kh * h, kw * w, features)
    return _resample(products, *(_moved(*sides) for sides in zip((h, w), size, (kh, kw), strict=True)))


def _resample(x, rows, columns):
    """Multiplies rows and columns by a matrix (result, source) each, in float32 or wider."""
    wide = widened(x)
    rows, columns = (jnp.asarray(matrix, wide.dtype) for matrix in (rows, columns))
    y = jnp.einsum("yh,nhwc->nywc", rows, wide, precision="highest")
    return jnp.einsum("xw,nywc->nyxc", columns, y, precision="highest").astype(x.dtype)


def _averages(source: int, result: int) -> np.ndarray:
    matrix = np.zeros((result, source))
    for index in range(result):
        start, stop = index * source // result, -(-(index + 1) * source // result)
        matrix[index, start:stop] = 1 / (stop - start)
    return matrix


def _moved(source: int, result: int, taps: int) -> np.ndarray:
    """The interpolations that each tap of a kernel sees, of pixels within the result."""
    matrix = np.pad(_interpolations(source, result), ((taps // 2, taps // 2), (0, 0)))
    return np.concatenate([matrix[tap : tap + result] for tap in range(taps)], axis=1)


def _interpolations(source: int, result: int) -> np.ndarray:
    place = np.linspace(0, source - 1, result)
    below = np.minimum(place.astype(int), max(source - 2, 0))
    share = place - below
    matrix = np.zeros((result, source))
    matrix[np.arange(result), below] = 1 - share
    if source > 1:
        matrix[np.arange(result), below + 1] = share
    return matrix
