"""Mixup and CutMix: blending images and targets of a batch in pairs, on the device, inside the jitted step."""

import math
import numbers
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from repmlp_jax.data.checks import check_array, height_and_width

Images = Float[Array, "N H W C"]
Targets = Float[Array, "N classes"]


def mix(
    key: PRNGKeyArray, images: Images, targets: Targets, *, mixup: float = 0.0, cutmix: float = 0.0
) -> tuple[Images, Targets]:
    """Blends a batch by mixup or CutMix; if both are on, each batch draws one of them with equal probability.

    Each image is blended with the previous one in the batch. Batches are shuffled, so any partner is as good, and on
    several devices only one image moves from each device to the next.

    Args:
        key: source of the random numbers; one blend is drawn for the whole batch.
        images: of any floating dtype, which they keep.
        targets: a distribution over the classes for each image, one-hot or smoothed; blended like the images.
        mixup: alpha of arXiv 1710.09412: the weight is drawn from Beta(alpha, alpha); 0: off.
        cutmix: alpha of arXiv 1905.04899: the share outside the box is drawn from Beta(alpha, alpha); 0: off.

    Returns:
        The blended images and targets.

    Raises:
        TypeError: if an alpha is not a number, or images or targets are not arrays.
        ValueError: if an alpha is below 0 or not finite, a blended array does not have a floating dtype, or there is
            not one row of targets for each image.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not isinstance(alpha, numbers.Real):
            raise TypeError(f"{name} must be a number, not {alpha!r}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"{name}={alpha} must be a finite number that is not below 0")
    if not (mixup or cutmix):
        return images, targets
    for name, array in (("images", images), ("targets", targets)):
        check_array(array, name)
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets):
        raise ValueError(
            f"images must be (N, H, W, C) and targets (N, classes), not {images.shape} and {targets.shape}: one-hot "
            f"rows, one for each image"
        )
    for name, array in (("images", images), ("targets", targets)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{name} are {array.dtype}, which cannot be blended; a floating dtype can")
    choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    shape = images.shape[1:3]
    if not cutmix:
        weights = mixup_weights(mixup_key, mixup, shape)
    elif not mixup:
        weights = cutmix_weights(cutmix_key, cutmix, shape)
    else:
        weights = jnp.where(
            jax.random.bernoulli(choice_key),
            mixup_weights(mixup_key, mixup, shape),
            cutmix_weights(cutmix_key, cutmix, shape),
        )
    return _blend(images, weights[None, :, :, None]), _blend(targets, weights.mean().reshape(1, 1))


def mixup_weights(key: PRNGKeyArray, alpha: float, shape: Sequence[int]) -> Float[Array, "H W"]:
    """The weight of the image itself at each pixel: one value from Beta(alpha, alpha).

    Raises:
        TypeError: if `shape` is not (H, W).
        ValueError: if `alpha` is not above 0.
    """
    _check_weights(alpha, shape)
    return jnp.broadcast_to(jax.random.beta(key, alpha, alpha, dtype=jnp.float32), shape)


def cutmix_weights(key: PRNGKeyArray, alpha: float, shape: Sequence[int]) -> Float[Array, "H W"]:
    """The weight of the image itself at each pixel: 0 in a box, 1 outside.

    The box has the images' proportions and a random centre, so it may extend over the border. The mean of the weights
    counts only its part inside.

    Raises:
        TypeError: if `shape` is not (H, W).
        ValueError: if `alpha` is not above 0.
    """
    _check_weights(alpha, shape)
    share_key, middle_key = jax.random.split(key)
    side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, dtype=jnp.float32))  # share of the images' sides
    rows, columns = (
        _inside(middle_key, length, side)
        for middle_key, length in zip(jax.random.split(middle_key), shape, strict=True)
    )
    return 1 - jnp.outer(rows, columns)


def _check_weights(alpha, shape):
    height_and_width("shape", shape)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha} must be a finite number above 0")


def _inside(key, length: int, share):
    """1 for the pixels along a side that the box covers, 0 for the others."""
    covered = (share * length).astype(jnp.int32)
    first = jax.random.randint(key, (), 0, length, jnp.int32) - covered // 2
    places = jnp.arange(length, dtype=jnp.int32)
    return ((places >= first) & (places < first + covered)).astype(jnp.float32)


def _blend(array, weights):
    weights = weights.astype(array.dtype)
    return array * weights + jnp.roll(array, 1, axis=0) * (1 - weights)
