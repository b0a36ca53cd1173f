"""Inference modules in int8: kernels with a scale for each output, and their products."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int8

from repmlp_jax.blocks.layers import by_group, by_pixel
from repmlp_jax.blocks.partition import Partitioning
from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock
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


class Int8Operand(Int8Kernel):
    """A kernel in int8 that is multiplied in int8; `kernel[...]` returns the operand for `int8_dot_general`."""

    def __getitem__(self, index) -> Any:
        """Returns the operand itself; raises TypeError for an index other than `...`."""
        if index is not ...:
            raise TypeError(f"a kernel that is multiplied in int8 is read as a whole, kernel[...], not kernel[{index}]")
        return self


def int8_dot_general(x: Float[Array, "..."], kernel: Int8Operand, dimension_numbers, **_) -> Float[Array, "..."]:
    """`lax.dot_general` of integers, summed in int32; each row of `x` is rounded with its own scale.

    A row is the part of `x` that one output sums over. In NNX's linear layers this replaces `dot_general`.
    """
    (summed, _), _ = dimension_numbers
    values, scale = round_to_int8(x, summed)
    y = lax.dot_general(values, kernel.values[...], dimension_numbers, preferred_element_type=jnp.int32)
    # Both have size 1 along summed axes, so this is the product of each row's and each output's scale.
    scales = lax.dot_general(scale, kernel.scale[...].astype(scale.dtype), dimension_numbers, precision="highest")
    return (y.astype(scales.dtype) * scales).astype(x.dtype)


def int8_convolution(
    x: Float[Array, "N ... C"], kernel: Int8Operand, strides, padding, *, precision=None, out_sharding=None, **options
) -> Float[Array, "N ... O"]:
    """`lax.conv_general_dilated` of integers, summed in int32; each image is rounded with its own scale.

    In `nnx.Conv` this replaces `conv_general_dilated`, with channels last.
    """
    del precision, out_sharding  # integers have one precision
    values, scale = round_to_int8(x, tuple(range(1, x.ndim)))
    y = lax.conv_general_dilated(
        values, kernel.values[...], strides, padding, preferred_element_type=jnp.int32, **options
    )
    scales = scale * kernel.scale[...].reshape((1,) * (x.ndim - 1) + (-1,)).astype(scale.dtype)
    return (y.astype(scales.dtype) * scales).astype(x.dtype)


def promote_around_int8(operands: tuple, *, dtype: DTypeLike | None = None) -> Any:
    """`promote_dtype` of (input, kernel, bias), which uses the dtype of the int8 kernel but does not cast it."""
    x, kernel, bias = operands
    x, _, bias = promote_dtype((x, jnp.zeros((), kernel.dtype), bias), dtype=dtype)
    return x, kernel, bias


class Int8RepMLP(nnx.Module):
    """The fused RepMLP block with FC3 multiplied in int8.

    Args:
        block: the fused block; its kernel is an `Int8Operand`.
    """

    def __init__(self, block: FusedRepMLP):
        self.partitioning = block.partitioning
        self.in_features = block.in_features
        self.global_perceptron = nnx.data(block.global_perceptron)
        self.kernel = block.kernel
        self.bias = block.bias
        self.dtype = block.dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block.

        Raises:
            ValueError: if the map's size or channels are not those that the block was built for.
        """
        self.partitioning.check(x, self.in_features)
        x, kernel, bias = promote_around_int8((x, self.kernel, self.bias[...]), dtype=self.dtype)
        x = self.partitioning.split(x, len(bias))
        if self.global_perceptron is not None:
            x = x + self.global_perceptron(x)
        y = int8_dot_general(by_group(x), kernel, (((3,), (1,)), ((0,), (0,))))
        return self.partitioning.join(by_pixel(y + bias[:, None, None], x.shape[2]))


class Int8RepMLPNetBlock(nnx.Module):
    """RepMLPNet's fused block with FC3 multiplied in int8.

    Args:
        block: the fused block; its kernel is an `Int8Operand`.
    """

    def __init__(self, block: FusedRepMLPNetBlock):
        self.features = block.features
        self.partition_size = block.partition_size
        self.pad = block.pad
        self.gate = block.gate
        self.kernel = block.kernel
        self.bias = block.bias
        self.dtype = block.dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the block.

        Raises:
            ValueError: if the partitions do not divide the map, or the channels are not `features`.
        """
        partitioning = Partitioning(x.shape[1:3], self.partition_size, self.pad)
        partitioning.check(x, self.features)
        x, kernel, bias = promote_around_int8((x, self.kernel, self.bias[...]), dtype=self.dtype)
        split, sharesets = partitioning.split(x)[:, :, :, 0], len(bias)
        shared = split.reshape(*split.shape[:3], -1, sharesets).transpose(4, 0, 1, 3, 2)
        y = int8_dot_general(shared, kernel, (((4,), (1,)), ((0,), (0,)))) + bias[:, None, None, None]
        return partitioning.join(y.transpose(1, 2, 4, 3, 0).reshape(split.shape)[:, :, :, None]) * self.gate(x)
