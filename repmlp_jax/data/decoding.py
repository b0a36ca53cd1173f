"""Decoding of pictures and random crops of a fixed size, on the host."""

import math

import cv2
import numpy as np
from jaxtyping import UInt8

from repmlp_jax.data.preprocessing import resize
from repmlp_jax.data.stream import BadExample

DRAWS = 10
RATIOS = 3 / 4, 4 / 3  # smallest and largest width / height


def decode(encoded: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes JPEG, PNG and other formats of OpenCV to RGB; a grey picture gets three equal channels.

    The EXIF orientation is ignored, as in published results on ImageNet.

    Raises:
        BadExample: if it is not a picture, or an incomplete one.
    """
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise BadExample(f"{len(encoded)} bytes cannot be decoded: {error.err}") from None
    if image is None:
        raise BadExample(f"{len(encoded)} bytes are not a complete picture")
    return image


def draw_box(
    height: int, width: int, random: np.random.Generator, *, scale: tuple[float, float] = (0.08, 1.0)
) -> tuple[int, int, int, int]:
    """Draws a box in a picture, as in the training of Inception (arXiv 1409.4842, Section 6) and in torchvision.

    Its share of the area and the logarithm of its width / height are uniform. The first of ten draws that fits is
    returned; if none fits, the largest centred box with an allowed ratio.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        random: source of the random numbers.
        scale: smallest and largest share of the area.

    Returns:
        Top, left, height and width of the box, in pixels.
    """
    for _ in range(DRAWS):
        area = height * width * random.uniform(*scale)
        proportion = math.exp(random.uniform(math.log(RATIOS[0]), math.log(RATIOS[1])))
        box_height, box_width = round(math.sqrt(area / proportion)), round(math.sqrt(area * proportion))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(random.integers(height - box_height + 1))
            left = int(random.integers(width - box_width + 1))
            return top, left, box_height, box_width
    box_height = max(1, min(height, round(width / RATIOS[0])))
    box_width = max(1, min(width, round(height * RATIOS[1])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_resized_crop(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int], random: np.random.Generator
) -> UInt8[np.ndarray, "height width 3"]:
    """Cuts out a box of `draw_box` and resizes it to `size`, (height, width), with `resize`."""
    top, left, height, width = draw_box(image.shape[0], image.shape[1], random)
    return resize(image[top : top + height, left : left + width], size)


def random_flip(image: UInt8[np.ndarray, "H W 3"], random: np.random.Generator) -> UInt8[np.ndarray, "H W 3"]:
    """Mirrors a picture left to right with probability one half."""
    return np.ascontiguousarray(image[:, ::-1]) if random.random() < 0.5 else image
