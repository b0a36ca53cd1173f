"""Maps of another size: adaptive average pooling and bilinear enlarging, both exactly PyTorch's.

Either is linear in rows and in columns, so it is a product with one small constant matrix for each.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from repmlp_jax.fusing.algebra import widened


def adaptive_average(x: Float[Array, "N H W C"], size: Sequence[int]) -> Float[Array, "N h w C"]:
    """Averages maps over h × w windows that cover them, whether or not h and w divide H and W.

    Window i of h begins at row floor(i·H / h) and ends before row ceil((i + 1)·H / h): windows overlap, or
    differ by a row in height, where h does not divide H. As PyTorch's AdaptiveAvgPool2d.

    Args:
        x: the maps.
        size: (h, w) of the result.
    """
    return _resample(x, *(_averages(*sides) for sides in zip(x.shape[1:3], size, strict=True)))


def enlarge(x: Float[Array, "N H W C"], size: Sequence[int]) -> Float[Array, "N h w C"]:
    """Interpolates maps bilinearly so that their corner pixels become the corner pixels of the result.

    As PyTorch's interpolate with align_corners=True. A side of one pixel is repeated.

    Args:
        x: the maps.
        size: (h, w) of the result.
    """
    return _resample(x, *(_interpolations(*sides) for sides in zip(x.shape[1:3], size, strict=True)))


def _resample(x, rows, columns):
    """Rows and columns each times a matrix (result, source), in float32 or wider."""
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


def _interpolations(source: int, result: int) -> np.ndarray:
    place = np.linspace(0, source - 1, result)
    below = np.minimum(place.astype(int), max(source - 2, 0))
    share = place - below
    matrix = np.zeros((result, source))
    matrix[np.arange(result), below] = 1 - share
    if source > 1:
        matrix[np.arange(result), below + 1] = share
    return matrix
