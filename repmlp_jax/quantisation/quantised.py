"""Kernels in int8, with a scale for each output."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from repmlp_jax.fusing.algebra import widened

LARGEST = 127  # -128 is not used, so that rounding is symmetric about zero.


@functools.partial(jax.jit, static_argnames="axes")
def round_to_int8(array: Float[Array, "..."], axes: Sequence[int]) -> tuple[Int8[Array, "..."], Float[Array, "..."]]:
    """Rounds an array to integers from -127 to 127 times a scale; the largest magnitude becomes 127.

    The error of `values * scale` is at most half a scale; zeros are exact.

    Args:
        array: the array; it is rounded in float32 or wider.
        axes: axes along which numbers share a scale.

    Returns:
        The integers, and the scales, of size 1 along `axes`. A NaN or an infinity makes its scale NaN or infinite.
    """
    wide = widened(array)
    # The smallest normal number replaces a scale of zero, to avoid a division by zero.
    scale = jnp.maximum(jnp.abs(wide).max(axes, keepdims=True) / LARGEST, jnp.finfo(wide.dtype).tiny)
    return jnp.round(wide / scale).astype(jnp.int8), scale


class Int8Kernel(nnx.Module):
    """A kernel in int8; `kernel[...]` is its floating-point value, as for a parameter.

    Args:
        values: the integers, of the kernel's shape.
        scale: factor of each output, of size 1 along the axes that are summed over.
        dtype: dtype of `kernel[...]`.
    """

    def __init__(self, values: Int8[Array, "..."], scale: Float[Array, "..."], dtype: DTypeLike):
        self.values = nnx.Param(values)
        self.scale = nnx.Param(scale)
        self.dtype = jnp.dtype(dtype)

    def __getitem__(self, index) -> Any:
        """The floating-point kernel at an index."""
        scale = self.scale[...]
        return (self.values[...].astype(scale.dtype) * scale).astype(self.dtype)[index]
