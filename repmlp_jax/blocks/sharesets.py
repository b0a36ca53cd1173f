"""Operations of share-sets on maps whose channel c belongs to set c mod S."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from repmlp_jax.blocks.operations import by_platform, convolve_same


@jax.jit
def multiply_sharesets(x: Float[Array, "N m p C"], kernel: Float[Array, "S p q"]) -> Float[Array, "N m q C"]:
    """Multiplies the pixels of each partition and channel by the matrix of the channel's share-set: FC3.

    The CPU is fastest on one product for each share-set, others where the channels stay last.
    """
    return by_platform(x, kernel, cpu=_multiply_each_set, default=_multiply_channels_last)


def _multiply_each_set(x, kernel):
    (n, m, p, channels), (sharesets, _, q) = x.shape, kernel.shape
    x = x.reshape(n, m, p, channels // sharesets, sharesets).transpose(4, 0, 1, 3, 2)
    y = x.reshape(sharesets, -1, p) @ kernel
    return y.reshape(*x.shape[:4], q).transpose(1, 2, 4, 3, 0).reshape(n, m, q, channels)


def _multiply_channels_last(x, kernel):
    (n, m, p, channels), (sharesets, _, q) = x.shape, kernel.shape
    x = x.reshape(n, m, p, channels // sharesets, sharesets)
    return jnp.einsum("nmpks,spq->nmqks", x, kernel).reshape(n, m, q, channels)


@jax.jit
def convolve_sharesets(x: Float[Array, "N H W C"], kernel: Float[Array, "kh kw 1 S"]) -> Float[Array, "N H W C"]:
    """Convolves each channel with the kernel of its share-set, of odd sides, with 'same' padding.

    The CPU is fastest on images of S channels, others on one depthwise convolution with repeated kernels.
    """
    return by_platform(x, kernel, cpu=_convolve_each_set, default=_convolve_depthwise)


def _convolve_each_set(x, kernel):
    sharesets = kernel.shape[3]
    return with_channels_of_sets(lambda images: convolve_same(images, kernel, sharesets), x, sharesets)


def _convolve_depthwise(x, kernel):
    channels = x.shape[3]
    return convolve_same(x, jnp.tile(kernel, channels // kernel.shape[3]), channels)


def with_channels_of_sets(
    function: Callable[[Array], Array], x: Float[Array, "N H W C"], sharesets: int
) -> Float[Array, "N H W C"]:
    """Applies a function of images with S channels to maps, whose channels are C/S such images; it keeps their size."""
    n, h, w, channels = x.shape
    images = x.reshape(n, h, w, channels // sharesets, sharesets).transpose(0, 3, 1, 2, 4)
    y = function(images.reshape(n * (channels // sharesets), h, w, sharesets))
    return y.reshape(images.shape).transpose(0, 2, 3, 1, 4).reshape(x.shape)
