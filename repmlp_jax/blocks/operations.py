"""Operations whose fastest form depends on the platform.

The platform is the one that a program is compiled for, not the default of the process: a model on the CPU of a machine
with a GPU uses the CPU's form, and an exported program holds the forms of all its platforms.

What is chosen on accelerators, with the milliseconds of a TPU v5e's compiler and, in brackets, those of an H100:

- RepMLP, 8 images or more: the batch last, and in a pure MLP a map that is split once a stage. Pure MLP at 128, fused:
  2.70 before, 0.40 now; its training step 30.7 (9.6), now 6.7 (5.8). RepMLP-Res50-Light at 128, fused: 30.6, now 18.7
  (4.7); with its stages in one run 22.3 (5.2).
- RepMLP, fewer images: the channels last, as on a CPU. PSPNet for 2, with its pyramid in parts: 47.2, now 21.3.
- Share-sets: one einsum with the channels last. RepMLPNet-T224 at 128, fused: 20.1, now 9.4 (3.8); step 177.5, now 70.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from repmlp_jax.blocks.resampling import beside_each_other, convolve_enlarged
from repmlp_jax.fusing import algebra

Result = TypeVar("Result")

# With fewer images the batch would fill too few of the 128 lanes of a TPU, even beside few channels.
FEWEST_LAST = 8
# From so many channels on, it takes a TPU longer to repeat a 1×1 convolution than to store its result.
WIDE = 512

# Up to this many numbers in a row of pixels, a convolution over rows is faster than one over pixels on the CPU.
NARROW_ROW = 128


def by_platform(*operands, default: Callable[..., Result], **forms: Callable[..., Result]) -> Result:
    """Computes the form of the platform that the program is for, `cpu`, `tpu` or `cuda`, or else the default.

    ONNX files hold the default.

    Its callers are jitted. If a jitted function is differentiated, `lax.platform_dependent` alone passes the choice
    from the forward to the backward pass as a number. There XLA compiles a conditional, in which convolutions on the
    CPU run on one core, 20 times slower. Under `jax.checkpoint` the backward pass makes its own choice.
    """
    choose = functools.partial(lax.platform_dependent, default=default, **forms)
    return jax.checkpoint(choose, prevent_cse=False)(*operands)


@functools.partial(jax.jit, static_argnames=("strides", "padding", "feature_group_count", "options"))
def grouped_convolution(x, kernel, *, strides, padding, feature_group_count, options=()):
    """Convolves NHWC `x` with an HWIO kernel.

    XLA's CPU backend runs the backward pass of a grouped convolution 20 to 40 times slower than one dense convolution
    for each group, so the CPU's form splits it. Convolutions of few channels are slow there too, so narrow maps, such
    as partitions, are convolved row by row. A convolution without overlapping windows (1×1 or patches) is a matrix
    product. (The function is jitted to keep its name in a jaxpr, by which `macs.py` counts it.)

    Args:
        x: images, (N, H, W, C).
        kernel: (kh, kw, C / groups, O).
        strides: (down, across).
        padding: ((top, bottom), (left, right)), or a name such as "SAME".
        feature_group_count: groups of channels, contiguous.
        options: further arguments of `lax.conv_general_dilated`, as pairs.
    """
    convolve: Callable[..., Array] = functools.partial(
        lax.conv_general_dilated,
        window_strides=strides,
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **dict(options),
    )
    in_one: Callable[..., Array] = functools.partial(convolve, feature_group_count=feature_group_count)
    is_dilated = any(dict(options).get(name, (1, 1)) != (1, 1) for name in ("lhs_dilation", "rhs_dilation"))
    windows_are_apart = padding == ((0, 0), (0, 0)) and all(map(operator.le, kernel.shape[:2], strides))
    if windows_are_apart and feature_group_count == 1 and not is_dilated:
        return by_platform(x, kernel, cpu=functools.partial(multiply_windows, strides=strides), default=in_one)
    if feature_group_count in (1, x.shape[-1]):
        return in_one(x, kernel)
    same = tuple((side // 2, side // 2) for side in kernel.shape[:2])
    is_plain = strides == (1, 1) and padding == same and not is_dilated
    is_narrow = x.shape[2] * kernel.shape[2] <= NARROW_ROW
    one_group = convolve_rows if is_plain and is_narrow else convolve
    group_by_group = functools.partial(_convolve_group_by_group, one_group, feature_group_count)
    return by_platform(x, kernel, cpu=group_by_group, default=in_one)


@jax.jit
def convolve_parts(
    maps: Sequence[Float[Array, "N _ _ _"]], kernel: Float[Array, "kh kw C O"]
) -> Float[Array, "N H W O"]:
    """Convolves maps that lie beside each other in the C channels, with stride 1 and 'same' padding.

    Smaller maps are enlarged to the size of the first. On accelerators it is the sum of one convolution for each map:
    to concatenate them would cost as much again.
    """
    return by_platform(*maps, kernel, cpu=_convolve_concatenated, default=_sum_of_convolutions)


def convolve_same(
    x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw c O"], groups: int = 1
) -> Float[Array, "N H W O"]:
    """Convolves with stride 1, 'same' padding and a kernel of odd sides."""
    padding = tuple((side // 2, side // 2) for side in kernel.shape[:2])
    return grouped_convolution(x, kernel, strides=(1, 1), padding=padding, feature_group_count=groups)


def _convolve_concatenated(*operands):
    *maps, kernel = operands
    return convolve_same(beside_each_other(maps), kernel)


def _sum_of_convolutions(*operands):
    *maps, kernel = operands
    ends = itertools.accumulate(part.shape[-1] for part in maps[:-1])
    kernels = jnp.split(kernel, list(ends), axis=2)
    size = maps[0].shape[1:3]
    return sum(
        convolve_same(*part) if part[0].shape[1:3] == size else convolve_enlarged(*part, size)
        for part in zip(maps, kernels, strict=True)
    )


def _convolve_group_by_group(convolve, feature_group_count, x, kernel):
    groups = zip(*(jnp.split(array, feature_group_count, axis=-1) for array in (x, kernel)), strict=True)
    return jnp.concatenate([convolve(*group) for group in groups], axis=-1)


def multiply_windows(
    x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C O"], strides: tuple[int, int]
) -> Float[Array, "N H2 W2 O"]:
    """A convolution without padding and without overlapping windows: the kernel is not larger than the strides."""
    n, height, width, channels = x.shape
    (kh, kw), (down, across) = kernel.shape[:2], strides
    h, w = (height - kh) // down + 1, (width - kw) // across + 1
    # Crops pixels outside all windows, or completes the strides of the last window.
    borders = ((0, 0, 0), (0, h * down - height, 0), (0, w * across - width, 0), (0, 0, 0))
    x = lax.pad(x, jnp.zeros((), x.dtype), borders)
    windows = x.reshape(n, h, down, w, across, channels)[:, :, :kh, :, :kw].transpose(0, 1, 3, 2, 4, 5)
    matrix = kernel.reshape(kh * kw * channels, -1)
    return (windows.reshape(n * h * w, len(matrix)) @ matrix).reshape(n, h, w, matrix.shape[1])


def convolve_rows(x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw C O"]) -> Float[Array, "N H W O"]:
    """A convolution of stride 1 and 'same' padding that treats a row of pixels as one pixel with W·C channels.

    Within a row the convolution is an FC, constructed by `conv_to_fc`.
    """
    n, height, width, channels = x.shape
    kh, kw, _, features = kernel.shape
    rows_of_kernel = kernel.transpose(1, 2, 0, 3).reshape(1, kw, channels, kh * features)
    fcs = algebra.conv_to_fc(rows_of_kernel, (1, width)).reshape(width, channels, width, kh, features)
    y = lax.conv_general_dilated(
        x.reshape(n, height, width * channels),
        fcs.transpose(3, 0, 1, 2, 4).reshape(kh, width * channels, width * features),
        window_strides=(1,),
        padding=((kh // 2, kh // 2),),
        dimension_numbers=("NHC", "HIO", "NHC"),
    )
    return y.reshape(n, height, width, features)


def halve(x: Float[Array, "N H W C"]) -> Float[Array, "N H//2 W//2 C"]:
    """Max-pools 2×2 windows with stride 2, for even H and W.

    The backward pass of `nnx.max_pool` is 18 times slower on the CPU.
    """
    x = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(x[:, :, ::2], x[:, :, 1::2])


@jax.jit
def max_pool(x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 C"]:
    """Max-pools 3×3 windows with stride 2 and padding 1, as in ResNet's stem.

    H2 and W2 are H/2 and W/2, rounded up. On the CPU the backward pass of `nnx.max_pool` is four times slower than that
    of maxima down and across.
    """
    window = dict(window_shape=(3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return by_platform(x, cpu=_maxima, default=functools.partial(nnx.max_pool, **window))


def _maxima(x):
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    x = jnp.maximum(jnp.maximum(x[:, :-2:2], x[:, 1:-1:2]), x[:, 2::2])
    return jnp.maximum(jnp.maximum(x[:, :, :-2:2], x[:, :, 1:-1:2]), x[:, :, 2::2])


@jax.jit
def computed_once(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns `x`, bit for bit, and makes the CPU compute it only once; for what several layers use.

    XLA's CPU backend considers additions and multiplications cheap, so every block of a chain of residual blocks would
    recompute all sums and norms before it: time grows with the square of the number of blocks. It never repeats a
    division, so the CPU's form divides by a 1 that XLA cannot recognise. (XLA removes an `optimization_barrier` too
    early.) Exported programs for any batch size do without.
    """
    if not all(isinstance(side, int) for side in x.shape):
        return x
    return by_platform(x, cpu=_divided_by_one, default=lambda x: x)


@functools.partial(jax.jit, static_argnums=1)
def stored(x: Float[Array, "N H W C"], channels: int) -> Float[Array, "N H W C"]:
    """Returns `x`, and makes a TPU store it, the result of a 1×1 convolution of `channels`, before a 3×3 one reads it.

    XLA fuses both, and computes the first again for each row of the kernel. With few channels or images that is faster
    than to store.
    """
    if channels < WIDE or (isinstance(x.shape[0], int) and x.shape[0] < FEWEST_LAST):
        return x
    return by_platform(x, tpu=lax.optimization_barrier, default=lambda x: x)


def _divided_by_one(x):
    one = ((x == x) | (x != x)).astype(x.dtype)
    return x / one
