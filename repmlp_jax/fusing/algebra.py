"""The algebra of re-parameterisation: folding norms, adding kernels, turning a convolution into an FC.

Pure functions on arrays. All arithmetic of fusing happens in float32 (float64 for float64 parameters) at the highest
precision, whatever dtype a model computes in. Each fold is compiled as one: there are many in a model, and few shapes.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

# A model may hold NumPy arrays as well.
AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def fusing_dtype(param_dtype: DTypeLike) -> jnp.dtype:
    """The dtype parameters are fused in: float64 for float64, otherwise float32."""
    return jnp.dtype(jnp.float64 if jnp.dtype(param_dtype) == jnp.float64 else jnp.float32)


def widened(array: AnyArray) -> AnyArray:
    """The array in the dtype that it is fused in."""
    return array.astype(fusing_dtype(array.dtype))


@jax.jit
def scale_and_shift(norm) -> tuple[Array, Array]:
    """The running statistics and parameters of a norm as `x * scale + shift`, each of the shape of its parameters."""
    scale, bias = widened(norm.scale[...]), widened(norm.bias[...])
    # Flax's own norms have their statistics in float32, whatever the dtype of their parameters.
    mean, var = norm.mean[...].astype(scale.dtype), norm.var[...].astype(scale.dtype)
    scale = scale * lax.rsqrt(var + norm.epsilon)
    return scale, bias - mean * scale


@jax.jit
def fold_norm(kernel: Float[Array, "... O"], norm) -> tuple[Array, Array]:
    """Folds the norm after a convolution or FC without bias into its kernel, whose last axis is the output.

    Returns:
        The folded kernel and the bias (O,) (paper, equation 2).
    """
    scale, shift = scale_and_shift(norm)
    return widened(kernel) * scale.reshape((1,) * (kernel.ndim - 1) + (-1,)), shift


@jax.jit
def fold_norm_before(norm, kernel: Float[Array, "... C O"], bias: Float[Array, " O"]) -> tuple[Array, Array]:
    """Folds the norm before an FC or 1×1 convolution with a bias into its kernel and bias.

    An FC may see several places, each with the C channels of the norm: these are the axes before C.

    (Before a larger convolution it cannot be folded: what the norm makes of the zeros of the padding is not zero.)
    """
    scale, shift = scale_and_shift(norm)
    kernel, bias = widened(kernel), widened(bias)
    shift = jnp.tile(shift, math.prod(kernel.shape[:-2]))
    shifted = jnp.matmul(shift, kernel.reshape(-1, kernel.shape[-1]), precision="highest")
    return kernel * scale[:, None].reshape((1,) * (kernel.ndim - 2) + (-1, 1)), bias + shifted


def add_kernels(kernels: Sequence[Float[Array, "_ _ c O"]]) -> Float[Array, "K1 K2 c O"]:
    """Adds odd-sized kernels as if each were zero-padded to the largest."""
    sides = [max(kernel.shape[axis] for kernel in kernels) for axis in (0, 1)]

    def padded(kernel):
        margins = [(side - size) // 2 for side, size in zip(sides, kernel.shape[:2], strict=True)]
        return jnp.pad(kernel, [(margin, margin) for margin in margins] + [(0, 0), (0, 0)])

    return sum(padded(kernel) for kernel in kernels)


def merge_convolutions(convolutions: Sequence[tuple[Float[Array, "_ _ c O"], object]]) -> tuple[Array, Array]:
    """The kernel and bias of one convolution that equals the sum of several, given as (kernel, the norm after it)."""
    kernels, biases = zip(*(fold_norm(kernel, norm) for kernel, norm in convolutions), strict=True)
    return add_kernels(kernels), sum(biases)


def conv_to_fc(
    kernel: Num[Array | np.ndarray, "kh kw c O"], partition_size: tuple[int, int], groups: int = 1
) -> Num[Array, "g h w c h w o"]:
    """The FC that equals a convolution of stride 1 and 'same' zero padding on a partition (paper, Section 3.2).

    The FC's kernel is the convolution applied to the identity: row after row, an image with a single 1. What a
    convolution makes of a single 1 is its kernel, turned by 180° and laid around it, as far as the partition reaches:
    a window of the zero-padded kernel. So nothing is multiplied, and every value arrives bit for bit.

    Args:
        kernel: HWIO kernel of odd height and width, which may exceed the partition; c = C / groups.
        partition_size: (h, w) of the partition.
        groups: groups of the convolution, contiguous in its output channels.

    Returns:
        The kernel, indexed (group, input row, input column, input channel of the group, output row, output column,
        output channel of the group).

    Raises:
        ValueError: if a side of the kernel is even, or the groups do not divide the output channels.
    """
    kh, kw, c, features = kernel.shape
    h, w = partition_size
    if kh % 2 == 0 or kw % 2 == 0:
        raise ValueError(f"conv_to_fc needs odd kernel sides, for which 'same' padding is symmetric, not {kh}x{kw}")
    if groups < 1 or features % groups:
        raise ValueError(f"conv_to_fc: groups={groups} does not divide the {features} output channels")
    margins = [(side - 1 - size // 2,) * 2 + (0,) for side, size in ((h, kh), (w, kw))]  # below 0, it is cropped
    around = kernel.reshape(kh, kw, c, groups, features // groups).transpose(3, 2, 0, 1, 4)[:, :, ::-1, ::-1]
    around = lax.pad(around, jnp.zeros((), kernel.dtype), [(0, 0, 0)] * 2 + margins + [(0, 0, 0)])

    def convolve_one_at(row: Int[Array, ""], column: Int[Array, ""]) -> Num[Array, "g c h w o"]:
        corner = (0, 0, h - 1 - row, w - 1 - column, 0)
        return lax.dynamic_slice(around, corner, (groups, c, h, w, features // groups))

    rows = jax.vmap(jax.vmap(convolve_one_at, (None, 0)), (0, None))(jnp.arange(h), jnp.arange(w))
    return jnp.moveaxis(rows, 2, 0)


def fc_bias(bias: Float[Array, " O"], partition_size: tuple[int, int], groups: int) -> Float[Array, "g h w o"]:
    """The bias of a convolution as that of an FC: that of a channel at every pixel."""
    h, w = partition_size
    bias = bias.reshape(groups, 1, 1, -1)
    return jnp.broadcast_to(bias, (groups, h, w, bias.shape[-1]))
