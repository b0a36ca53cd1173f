"""Operations on split maps, (N, m, p, g, c): m partitions of p pixels, and their channels in groups.

A map is split before the first layer of a run and joined after the last one. On accelerators it lies in memory with the
batch last: XLA chooses this order where all operations have a form with the batch last. On a TPU nothing is then padded
to tiles of 8×128 numbers, whatever the number of channels is; on a GPU a training step has fewer and larger kernels. On
a CPU, where that is 1.1 to 1.4 times slower, the channels are last.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from repmlp_jax.blocks.operations import FEWEST_LAST, by_platform, convolve_same

# With fewer images it is faster to join as on a CPU, from products with the batch last.
FEWEST_JOINED = 32


def _by_order(*operands, batch, channels_last, batch_last):
    """Computes the form of the order in memory; a batch of any size, in exported programs, counts as large."""
    if isinstance(batch, int) and batch < FEWEST_LAST:
        return channels_last(*operands)
    accelerators = dict.fromkeys(("tpu", "cuda", "rocm"), batch_last)
    return by_platform(*operands, **accelerators, default=channels_last)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def split(
    x: Float[Array, "N H W C"], counts: tuple[int, int], partition_size: tuple[int, int], groups: int
) -> Float[Array, "N m p g c"]:
    """Splits maps into partitions, down and then across, and their channels into groups."""
    channels_last, batch_last = (
        functools.partial(form, counts=counts, partition_size=partition_size, groups=groups)
        for form in (_split, _split if counts == (1, 1) else _split_batch_last)
    )
    return _by_order(x, batch=x.shape[0], channels_last=channels_last, batch_last=batch_last)


def _split(x, counts, partition_size, groups):
    (down, across), (h, w) = counts, partition_size
    x = x.reshape(x.shape[0], down, h, across, w, x.shape[3]).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(x.shape[0], down * across, h * w, groups, x.shape[5] // groups)


def _split_batch_last(x, counts, partition_size, groups):
    (down, across), (h, w), (n, *_, channels) = counts, partition_size, x.shape
    x = x.transpose(1, 2, 3, 0).reshape(down, h, across, w, groups, channels // groups, n)
    return _batch_first(x.transpose(4, 0, 2, 1, 3, 5, 6).reshape(groups, down * across, h * w, channels // groups, n))


@functools.partial(jax.jit, static_argnums=(1, 2))
def join(
    y: Float[Array, "N m p g c"], counts: tuple[int, int], partition_size: tuple[int, int]
) -> Float[Array, "N H W C"]:
    """The inverse of `split`."""
    is_small = isinstance(y.shape[0], int) and y.shape[0] < FEWEST_JOINED
    channels_last, batch_last = (
        functools.partial(form, counts=counts, partition_size=partition_size)
        for form in (_join, _join if counts == (1, 1) or is_small else _join_batch_last)
    )
    return _by_order(y, batch=y.shape[0], channels_last=channels_last, batch_last=batch_last)


def _join(y, counts, partition_size):
    (down, across), (h, w), (n, _, _, groups, c) = counts, partition_size, y.shape
    y = y.reshape(n, down, across, h, w, groups * c).transpose(0, 1, 3, 2, 4, 5)
    return y.reshape(n, down * h, across * w, groups * c)


def _join_batch_last(y, counts, partition_size):
    (down, across), (h, w), (n, _, _, groups, c) = counts, partition_size, y.shape
    y = _batch_last(y).reshape(groups, down, across, h, w, c, n).transpose(1, 3, 2, 4, 0, 5, 6)
    return y.reshape(down * h, across * w, groups * c, n).transpose(3, 0, 1, 2)


@jax.jit
def multiply_groups(x: Float[Array, "g N m K"], kernel: Float[Array, "g K J"]) -> Float[Array, "g N m J"]:
    """The matrix product of each group, FC3.

    XLA's CPU backend multiplies a single row by a matrix on one core, so the CPU's form sums four products that run in
    parallel.
    """
    _, n, m, k = x.shape
    if n == m == 1:
        return by_platform(x, kernel, cpu=_products if k % 4 else _sum_of_four_products, default=_products)
    return _by_order(x, kernel, batch=n, channels_last=_products, batch_last=_products_batch_last)


def _products(x, kernel):
    groups, n, m, k = x.shape
    y = lax.dot_general(x.reshape(groups, n * m, k), kernel, (((2,), (1,)), ((0,), (0,))))
    return y.reshape(groups, n, m, kernel.shape[2])


def _sum_of_four_products(x, kernel):
    groups, k, features = kernel.shape
    x, kernel = x.reshape(groups, 4, 1, k // 4), kernel.reshape(groups, 4, k // 4, features)
    return lax.dot_general(x, kernel, (((3,), (2,)), ((0, 1), (0, 1)))).sum(1)[:, None]


def _products_batch_last(x, kernel):
    return jnp.einsum("gkj,gmkn->gmjn", kernel, x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@jax.jit
def multiply_pixels(x: Float[Array, "N m p g c"], kernel: Float[Array, "C O"]) -> Float[Array, "N m p g o"]:
    """The matrix product of each pixel, a dense 1×1 convolution."""
    return _by_order(x, kernel, batch=x.shape[0], channels_last=_pixels, batch_last=_pixels_batch_last)


def _pixels(x, kernel):
    n, m, p, groups, c = x.shape
    y = x.reshape(n * m * p, groups * c) @ kernel
    return y.reshape(n, m, p, groups, kernel.shape[1] // groups)


def _pixels_batch_last(x, kernel):
    groups, c = x.shape[3:]
    kernel = kernel.reshape(groups, c, groups, kernel.shape[1] // groups)
    return _batch_first(jnp.einsum("gmpcn,gcho->hmpon", _batch_last(x), kernel))


@functools.partial(jax.jit, static_argnums=2)
def convolve_partitions(
    x: Float[Array, "N m p g c"], kernel: Float[Array, "kh kw c O"], partition_size: tuple[int, int]
) -> Float[Array, "N m p g o"]:
    """Convolves each partition by itself, with 'same' padding and the groups of the split map.

    With few channels a matrix unit would idle, so accelerators convolve over rows, whose pixels become channels.
    """
    channels_last, batch_last = (
        functools.partial(form, partition_size=partition_size) for form in (_convolve_pixels, _convolve_rows_batch_last)
    )
    return _by_order(x, kernel, batch=x.shape[0], channels_last=channels_last, batch_last=batch_last)


def _convolve_pixels(x, kernel, partition_size):
    n, m, p, groups, c = x.shape
    y = convolve_same(x.reshape(n * m, *partition_size, groups * c), kernel, groups)
    return y.reshape(n, m, p, groups, kernel.shape[3] // groups)


def _convolve_rows_batch_last(x, kernel, partition_size):
    (n, m, p, groups, c), (kh, kw, _, features), (h, w) = x.shape, kernel.shape, partition_size
    o = features // groups
    if kh == kw == 1:
        return _batch_first(jnp.einsum("gmpcn,cgo->gmpon", _batch_last(x), kernel.reshape(c, groups, o)))
    # The tap of the kernel from an input column to an output column, as a constant matrix: gathers are slow on a TPU.
    taps = np.arange(w)[:, None] - np.arange(w)[None] + kw // 2
    is_tap = jnp.asarray(taps[..., None] == np.arange(kw), kernel.dtype)
    rows = jnp.einsum("xyj,ijcgo->gixcyo", is_tap, kernel.reshape(kh, kw, c, groups, o))
    convolve = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=((0, 0), (kh // 2, kh // 2)),
        dimension_numbers=("HWCN", "HWIO", "HWCN"),
    )
    maps, rows = _batch_last(x).reshape(groups, m, h, w * c, n), rows.reshape(groups, 1, kh, w * c, w * o)
    y = jnp.stack([convolve(maps[group], rows[group]) for group in range(groups)])
    return _batch_first(y.reshape(groups, m, p, o, n))


def _batch_last(x):
    return x.transpose(3, 1, 2, 4, 0)


def _batch_first(x):
    return x.transpose(4, 1, 2, 0, 3)
