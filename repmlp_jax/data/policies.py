"""AutoAugment and RandAugment: policies that distort pictures in training."""

from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from repmlp_jax.data import distortions as d
from repmlp_jax.data.checks import check_random
from repmlp_jax.fusing.arguments import whole_number

# Name → distortion, for magnitudes 0 to 9.
AUTO_AUGMENT: dict[str, d.Distortion] = {
    "ShearX": d.shear_x,
    "Rotate": d.rotate,
    "AutoContrast": d.auto_contrast,
    "Invert": d.invert,
    "Equalize": d.equalize,
    "Solarize": d.solarize_more,
    "Posterize": d.posterize_more,
    "Contrast": d.contrast(d.more_or_less),
    "Color": d.color(d.more_or_less),
    "Sharpness": d.sharpness(d.more_or_less),
}

# Pairs of (distortion, probability, magnitude); the magnitude is 0 if a distortion has none.
IMAGENET_POLICY = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, 0), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, 0)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, 0)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, 0), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, 0)),
    (("Equalize", 0.0, 0), ("Equalize", 0.8, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, 0)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, 0)),
    (("Color", 0.4, 0), ("Equalize", 0.6, 0)),
    (("Equalize", 0.4, 0), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, 0)),
    (("Invert", 0.6, 0), ("Equalize", 1.0, 0)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, 0), ("Equalize", 0.6, 0)),
)

RAND_AUGMENT: tuple[d.Distortion, ...] = (
    d.auto_contrast,
    d.equalize,
    d.invert,
    d.rotate,
    d.posterize_less,
    d.solarize_less,
    d.solarize_add,
    d.color(d.from_less_to_more),
    d.contrast(d.from_less_to_more),
    d.brightness(d.from_less_to_more),
    d.sharpness(d.from_less_to_more),
    d.shear_x,
    d.shear_y,
    d.translate_x,
    d.translate_y,
    d.cutout,
)


def auto_augment(image: UInt8[np.ndarray, "H W 3"], random: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Applies one of AutoAugment's 25 pairs of distortions for ImageNet (arXiv 1805.09501, Table 9).

    Args:
        image: in RGB.
        random: source of the random numbers.

    Raises:
        TypeError: if the image is not an array, or `random` is not a generator.
        ValueError: if the image is not uint8 (H, W, 3).
    """
    picture = _picture(image, random)
    for name, probability, magnitude in IMAGENET_POLICY[random.integers(len(IMAGENET_POLICY))]:
        if random.random() < probability:
            picture = AUTO_AUGMENT[name](picture, magnitude / 9, random)
    return np.array(picture)


def rand_augment(
    image: UInt8[np.ndarray, "H W 3"], random: np.random.Generator, *, layers: int = 2, magnitude: int = 15
) -> UInt8[np.ndarray, "H W 3"]:
    """Applies distortions that are drawn for each image (arXiv 1909.13719), as in the training of RepMLPNet.

    Its "RandAugment 15" applies two of 16 distortions, each with a magnitude drawn from 0 to 14; magnitude 10 is
    strength 1. There are two differences: posterizing keeps at least one bit, since with none the picture would be
    black, and geometric distortions always interpolate linearly, never cubically.

    Args:
        image: in RGB.
        random: source of the random numbers.
        layers: number of distortions, applied one after another.
        magnitude: one more than the largest magnitude.

    Raises:
        TypeError: if the image is not an array, `random` is not a generator, or a number is not whole.
        ValueError: if the image is not uint8 (H, W, 3), or a number is not above 0.
    """
    layers, magnitude = whole_number("layers", layers, 1), whole_number("magnitude", magnitude, 1)
    picture = _picture(image, random)
    for _ in range(layers):
        distort = RAND_AUGMENT[random.integers(len(RAND_AUGMENT))]
        picture = distort(picture, int(random.integers(magnitude)) / 10, random)
    return np.array(picture)


POLICIES: dict[str, Callable] = {"autoaugment": auto_augment, "randaugment": rand_augment}
"""Name in a configuration → policy."""


def _picture(image, random):
    check_random(random)
    if not isinstance(image, np.ndarray):
        raise TypeError(f"the image must be a NumPy array, uint8 (H, W, 3), not a {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"the image is {image.dtype} {image.shape}; augmentation takes uint8 (H, W, 3)")
    return Image.fromarray(image)
