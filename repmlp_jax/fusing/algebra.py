"""The algebra of re-parameterisation: folding norms, adding kernels, turning a convolution into an FC.

These are pure functions on arrays. They compute in float32 (float64 for float64 parameters) at the highest precision,
whatever the dtype of a model. Each fold is one compiled program: a model has many folds, but few shapes.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from repmlp_jax.fusing.arguments import Pair, checked, pair

# A model may hold NumPy arrays.
AnyArray = TypeVar("AnyArray", Array, np.ndarray)


@runtime_checkable
class Norm(Protocol):
    """The interface of a batch norm: this library's, Flax's, or your own.

    The four variables have the same shape; `scale` and `bias` may be None.
    """

    scale: Any
    bias: Any
    mean: Any
    var: Any
    epsilon: float


def fusing_dtype(param_dtype: DTypeLike) -> jnp.dtype:
    """The dtype that parameters are fused in: float64 for float64, otherwise float32."""
    return jnp.dtype(jnp.float64 if jnp.dtype(param_dtype) == jnp.float64 else jnp.float32)


def widened(array: AnyArray) -> AnyArray:
    """Casts an array to the dtype that it is fused in."""
    return array.astype(fusing_dtype(array.dtype))


@jax.jit
def scale_and_shift(norm: Norm) -> tuple[Array, Array]:
    """Scale and shift of a norm in evaluation mode, `x * scale + shift`, each in the shape of its parameters."""
    parameters = [None if variable is None else variable[...] for variable in (norm.scale, norm.bias)]
    # Flax's norms keep their statistics in float32, whatever the dtype of their parameters.
    dtype = fusing_dtype(next((array.dtype for array in parameters if array is not None), norm.mean[...].dtype))
    mean, var = norm.mean[...].astype(dtype), norm.var[...].astype(dtype)
    scale, bias = (
        jnp.full_like(mean, plain) if array is None else array.astype(dtype)
        for array, plain in zip(parameters, (1, 0), strict=True)
    )
    scale = scale * lax.rsqrt(var + norm.epsilon)
    return scale, bias - mean * scale


@jax.jit
def fold_norm(kernel: Float[Array, "... O"], norm: Norm) -> tuple[Array, Array]:
    """Folds the norm after a convolution or FC without bias into its kernel; the last axis is the output.

    Returns:
        The folded kernel and the bias (O,) (paper, equation 2).

    Raises:
        ValueError: if the norm has not O features.
    """
    kernel, scale, shift = of_one_dtype(kernel, *_of_features(norm, kernel.shape[-1], kernel.shape))
    return kernel * scale.reshape((1,) * (kernel.ndim - 1) + (-1,)), shift


def _of_features(norm, features, kernel_shape) -> tuple[Array, Array]:
    """Scale and shift of a norm, which must have as many features as the kernel has beside it."""
    scale, shift = scale_and_shift(norm)
    if scale.size != features:
        raise ValueError(
            f"a norm of shape {scale.shape} does not fit a kernel of shape {kernel_shape}, which has {features} "
            f"channels beside it; if both are of a stack of modules: use jax.vmap, or fuse_params"
        )
    return scale, shift


def of_one_dtype(*arrays: Array) -> list[Array]:
    """Casts arrays to the widest of the dtypes that they are fused in."""
    dtype = max((fusing_dtype(array.dtype) for array in arrays), key=lambda dtype: dtype.itemsize)
    return [array.astype(dtype) for array in arrays]


@jax.jit
def fold_norm_before(norm: Norm, kernel: Float[Array, "... C O"], bias: Float[Array, " O"]) -> tuple[Array, Array]:
    """Folds the norm before an FC or 1×1 convolution with a bias into its kernel and bias.

    An FC may have several positions as inputs, each with the C channels of the norm; their axes precede C. (A norm
    before a larger convolution cannot be folded, since it does not map the zeros of the padding to zero.)

    Raises:
        ValueError: if the norm has not C features.
    """
    scale, shift = _of_features(norm, kernel.shape[-2], kernel.shape)
    kernel, bias, scale, shift = of_one_dtype(kernel, bias, scale, shift)
    shift = jnp.tile(shift, math.prod(kernel.shape[:-2]))
    shifted = jnp.matmul(shift, kernel.reshape(-1, kernel.shape[-1]), precision="highest")
    return kernel * scale[:, None].reshape((1,) * (kernel.ndim - 2) + (-1, 1)), bias + shifted


def add_kernels(kernels: Sequence[Float[Array, "... c O"]]) -> Float[Array, "... c O"]:
    """Adds kernels of odd sides, each zero-padded around its middle to the largest sides.

    Kernels alone do not show where their convolutions put them: at stride 2, "SAME" pads unevenly, by an amount that
    depends on the kernel and the map. `blocks.parallel.add_convolutions` compares the convolutions.

    Raises:
        ValueError: if there are no kernels, their channels differ, or their middles do not meet.
    """
    shapes = [kernel.shape for kernel in kernels]
    if not shapes:
        raise ValueError("add_kernels: there are no kernels to add")
    if len({(len(shape), *shape[-2:]) for shape in shapes}) > 1:
        raise ValueError(f"add_kernels: kernels of shapes {shapes} differ in more than their sides")
    sides = [max(sizes) for sizes in zip(*(shape[:-2] for shape in shapes), strict=True)]
    if any((side - size) % 2 for shape in shapes for side, size in zip(sides, shape, strict=False)):
        raise ValueError(f"add_kernels: the middles of kernels of shapes {shapes} do not meet: use odd sides")

    def padded(kernel):
        margins = [(side - size) // 2 for side, size in zip(sides, kernel.shape, strict=False)]
        return jnp.pad(kernel, [(margin, margin) for margin in margins] + [(0, 0), (0, 0)])

    return sum(padded(kernel) for kernel in kernels)


def merge_convolutions(convolutions: Sequence[tuple[Float[Array, "_ _ c O"], Norm]]) -> tuple[Array, Array]:
    """The kernel and bias of a convolution that equals the sum of several, given as (kernel, norm after it).

    As in `add_kernels`, the convolutions must have the same strides and be padded around the middles of their kernels.
    """
    if not convolutions:
        raise ValueError("merge_convolutions: there are no convolutions to merge")
    kernels, biases = zip(*(fold_norm(kernel, norm) for kernel, norm in convolutions), strict=True)
    return add_kernels(kernels), sum(biases)


@checked  # since JAX keeps what it traced for 4.0 and finds it again for 4
def conv_to_fc(
    kernel: Num[Array | np.ndarray, "kh kw c O"], partition_size: Pair, groups: int = 1
) -> Num[Array, "g h w c h w o"]:
    """Converts a convolution of stride 1 and 'same' zero padding on a partition to an FC (paper, Section 3.2).

    The FC's kernel is the convolution applied to the identity: to one image for each pixel, with a single 1 there. The
    response to a single 1 is the kernel, rotated by 180° and centred on that pixel. So this function only moves values,
    and every value is exact.

    Args:
        kernel: HWIO kernel of odd height and width, which may be larger than the partition; c = C / groups.
        partition_size: (h, w) of the partition, or one integer for both.
        groups: groups of the convolution, with contiguous output channels.

    Returns:
        The kernel, indexed (group, input row, input column, input channel of the group, output row, output column,
        output channel of the group).

    Raises:
        TypeError: if the kernel is not an array, or a size not an integer.
        ValueError: if a side of the kernel is even, or the groups do not divide the output channels.

    Examples:
        >>> import jax.numpy as jnp
        >>> from repmlp_jax import conv_to_fc
        >>> kernel = jnp.arange(9.0).reshape(3, 3, 1, 1)
        >>> fc = conv_to_fc(kernel, partition_size=(2, 2))
        >>> fc.shape
        (1, 2, 2, 1, 2, 2, 1)
        >>> fc.reshape(4, 4)[0]  # from the first pixel to all four
        Array([4., 3., 1., 0.], dtype=float32)
    """
    if not hasattr(kernel, "shape"):
        raise TypeError(f"conv_to_fc: kernel must be an array (kh, kw, c, O), not {kernel!r}")
    if len(kernel.shape) != 4:
        raise ValueError(f"conv_to_fc: kernel must have the axes (kh, kw, c, O), not the shape {kernel.shape}")
    kh, kw, c, features = kernel.shape
    h, w = pair(partition_size)
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"conv_to_fc needs odd kernel sides, for which 'same' padding is symmetric, not {kh}x{kw}")
    if groups < 1 or features % groups:
        raise ValueError(f"conv_to_fc: groups={groups} does not divide the {features} output channels")
    turned = kernel.reshape(kh, kw, c, groups, -1)[::-1, ::-1].transpose(3, 2, 0, 1, 4)
    placed = jnp.pad(turned, [(0, 0), (0, 0), (h, h), (w, w), (0, 0)])

    def response(row: Int[Array, ""], column: Int[Array, ""]) -> Num[Array, "g c h w o"]:
        """The response to an image with a single 1: the kernel, centred on that pixel."""
        rows = lax.dynamic_slice_in_dim(placed, h + kh // 2 - row, h, axis=2)
        return lax.dynamic_slice_in_dim(rows, w + kw // 2 - column, w, axis=3)

    responses = jax.vmap(jax.vmap(response, (None, 0)), (0, None))(jnp.arange(h), jnp.arange(w))
    return jnp.moveaxis(responses, 2, 0)


@checked
def fc_bias(bias: Float[Array, " O"], partition_size: Pair, groups: int) -> Float[Array, "g h w o"]:
    """Converts the bias of a convolution to that of an FC, by repeating it at every pixel."""
    h, w = pair(partition_size)
    if not groups or len(bias) % groups:
        raise ValueError(f"fc_bias: groups={groups} does not divide the {len(bias)} output channels")
    bias = bias.reshape(groups, 1, 1, -1)
    return jnp.broadcast_to(bias, (groups, h, w, bias.shape[-1]))
