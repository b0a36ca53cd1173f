"""Augmentation and normalisation on the device, inside the jitted step."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from repmlp_jax.data.checks import check_images
from repmlp_jax.fusing.arguments import whole_number
from repmlp_jax.storage.preprocessing import Statistics, check_statistics, normalised


def pad_and_crop(key: PRNGKeyArray, images: UInt8[Array, "N H W C"], padding: int) -> UInt8[Array, "N H W C"]:
    """Zero-pads each side by `padding` pixels and crops each image to its original size at a random position.

    Raises:
        TypeError: if `padding` is not a whole number.
        ValueError: if the images are not uint8 (N, H, W, C), or `padding` is negative.
    """
    check_images(images)
    padding = whole_number("padding", padding)
    padded = jnp.pad(images, [(0, 0), (padding, padding), (padding, padding), (0, 0)])
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

    def crop(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(crop)(padded, corners)


def flip(key: PRNGKeyArray, images: UInt8[Array, "N H W C"]) -> UInt8[Array, "N H W C"]:
    """Mirrors each image left to right with probability one half.

    Raises:
        ValueError: if the images are not uint8 (N, H, W, C).
    """
    check_images(images)
    chosen = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
    return jnp.where(chosen, images[:, :, ::-1], images)


def crop_and_flip(
    key: PRNGKeyArray, images: UInt8[Array, "N H W C"], *, padding: int, flipped: bool
) -> UInt8[Array, "N H W C"]:
    """Applies `pad_and_crop` unless `padding` is 0, and `flip` if `flipped` is set."""
    crop_key, flip_key = jax.random.split(key)
    if padding:
        images = pad_and_crop(crop_key, images, padding)
    return flip(flip_key, images) if flipped else images


def normalise(
    images: UInt8[Array, "N H W C"], mean: Statistics, std: Statistics, dtype: DTypeLike = jnp.float32
) -> Float[Array, "N H W C"]:
    """Scales images to [0, 1], then subtracts `mean` and divides by `std`, one value for each channel.

    Raises:
        TypeError: if `mean` or `std` is not a list of numbers, or `dtype` is not a floating dtype.
        ValueError: if the images are not uint8 (N, H, W, C), there is not one mean and one deviation for each channel,
            one of them is outside [0, 1], or a deviation is 0.
    """
    check_images(images)
    for name, values in (("mean", mean), ("std", std)):
        check_statistics(name, values, images.shape[-1])
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be a floating dtype, not {dtype!r}")
    return normalised(images, mean, std, dtype)
