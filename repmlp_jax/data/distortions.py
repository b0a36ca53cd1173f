"""The distortions of augmentation policies.

Each is `(picture, strength, random) → picture`. The strength is from 0 to 1, the original range of the operations; a
policy may exceed it. The direction of a geometric distortion is drawn; empty areas become grey.
"""

import functools
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

GREY = (128, 128, 128)

Distortion = Callable[[Image.Image, float, np.random.Generator], Image.Image]


def shear_x(picture, strength, random):
    """Shears horizontally: moves rows by up to 0.3 of their distance from the top."""
    return _affine(picture, (1, _either_way(0.3 * strength, random), 0, 0, 1, 0))


def shear_y(picture, strength, random):
    """Shears vertically: moves columns by up to 0.3 of their distance from the left."""
    return _affine(picture, (1, 0, 0, _either_way(0.3 * strength, random), 1, 0))


def translate_x(picture, strength, random):
    """Moves the picture horizontally, by up to 0.45 of its width."""
    return _affine(picture, (1, 0, _either_way(0.45 * strength * picture.width, random), 0, 1, 0))


def translate_y(picture, strength, random):
    """Moves the picture vertically, by up to 0.45 of its height."""
    return _affine(picture, (1, 0, 0, 0, 1, _either_way(0.45 * strength * picture.height, random)))


def rotate(picture, strength, random):
    """Rotates the picture around its centre, by up to 30 degrees."""
    return picture.rotate(_either_way(30 * strength, random), Image.Resampling.BILINEAR, fillcolor=GREY)


def auto_contrast(picture, strength, random):
    """Stretches each channel to the full range; ignores the strength."""
    return ImageOps.autocontrast(picture)


def equalize(picture, strength, random):
    """Equalizes the histogram of each channel; ignores the strength."""
    return ImageOps.equalize(picture)


def invert(picture, strength, random):
    """Inverts all values; ignores the strength."""
    return ImageOps.invert(picture)


def posterize_more(picture, strength, random):
    """Keeps the highest bits of each value: all 8 at strength 0, 4 at strength 1."""
    return _keep_bits(picture, 8 - round(4 * strength))


def posterize_less(picture, strength, random):
    """Keeps the highest bits of each value: 4 at strength 1, fewer below, but at least one."""
    return _keep_bits(picture, int(4 * strength))


def solarize_more(picture, strength, random):
    """Inverts the bright values: none at strength 0, all at strength 1."""
    return ImageOps.solarize(picture, round(256 * (1 - strength)))


def solarize_less(picture, strength, random):
    """Inverts the bright values: all at strength 0, none at strength 1."""
    return ImageOps.solarize(picture, int(256 * strength))


def solarize_add(picture, strength, random):
    """Brightens the darker half of the values, by up to 110."""
    added = int(110 * strength)
    return picture.point([min(255, value + added) if value < 128 else value for value in range(256)] * 3)


def cutout(picture, strength, random):
    """Greys out a square with sides of up to 40 pixels around a random pixel."""
    side = int(max(2, 40 * strength))
    left, top = (int(random.integers(length)) - side // 2 for length in picture.size)
    picture = picture.copy()
    picture.paste(GREY, (left, top, left + side, top + side))
    return picture


def enhance(kind: Callable, factor: Callable) -> Distortion:
    """A distortion that applies an enhancement of Pillow with the factor `factor(strength, random)`."""
    return lambda picture, strength, random: kind(picture).enhance(factor(strength, random))


# Each takes a factor, `more_or_less` or `from_less_to_more`, and returns a distortion.
color = functools.partial(enhance, ImageEnhance.Color)
contrast = functools.partial(enhance, ImageEnhance.Contrast)
brightness = functools.partial(enhance, ImageEnhance.Brightness)
sharpness = functools.partial(enhance, ImageEnhance.Sharpness)


def more_or_less(strength, random):
    """A factor from 1 up to 1.9 or down to 0.1."""
    return 1 + _either_way(0.9 * strength, random)


def from_less_to_more(strength, random):
    """A factor that is 0.1 at strength 0 and 1.9 at strength 1."""
    return 0.1 + 1.8 * strength


def _keep_bits(picture, bits):
    return ImageOps.posterize(picture, max(1, bits)) if bits < 8 else picture


def _either_way(value, random):
    return value if random.random() < 0.5 else -value


def _affine(picture, coefficients):
    return picture.transform(
        picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=GREY
    )
