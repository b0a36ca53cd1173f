"""Reading and decoding of pictures, and random crops of a fixed size, on the host."""

import io
import math
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from repmlp_jax.data.preprocessing import resize
from repmlp_jax.data.stream import BadExample
from repmlp_jax.local_path import local_file

DRAWS = 10
RATIOS = 3 / 4, 4 / 3  # smallest and largest width / height


def read_image(path: str | Path, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Reads a picture as a viewer shows it: `decode` with `apply_orientation`.

    Args:
        path: the file.
        channels: 3 for RGB, 1 for grey.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a regular file, `decode` cannot decode it, or `channels` is neither 1 nor 3.
    """
    path = local_file(path, "picture")
    try:
        return decode(path.read_bytes(), channels, apply_orientation=True)
    except BadExample as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error


def decode(encoded: bytes, channels: int = 3, *, apply_orientation: bool = False) -> UInt8[np.ndarray, "H W C"]:
    """Decodes JPEG, PNG and other formats of OpenCV.

    Args:
        encoded: the content of a picture's file.
        channels: 3 for RGB, where a grey picture gets three equal channels; 1 for grey.
        apply_orientation: turn the picture as its EXIF orientation says. Off for datasets, since published results on
            ImageNet ignore the orientation; on for the pictures of users, as they see them upright.

    Raises:
        BadExample: if it is not a picture, it is incomplete, or its header gives more than 178,956,970 pixels (twice
            `PIL.Image.MAX_IMAGE_PIXELS`; 2³⁰ in formats that Pillow does not know), of which none is decoded then.
        ValueError: if `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, not {channels}")
    _check_number_of_pixels(encoded)
    mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(
            np.frombuffer(encoded, np.uint8), mode if apply_orientation else mode | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except cv2.error as error:
        raise BadExample(f"{len(encoded)} bytes cannot be decoded: {error.err}") from None
    if image is None:
        raise BadExample(f"{len(encoded)} bytes are not a complete picture")
    return image.reshape(*image.shape[:2], channels)  # OpenCV drops the axis of a single channel.


def _check_number_of_pixels(encoded):
    """Refuses a picture that is too large by its header, which is all that Pillow reads here."""
    try:
        Image.open(io.BytesIO(encoded))
    except Image.DecompressionBombError as error:
        raise BadExample(f"it is too large: {error}") from None
    except Exception:  # A damaged header raises any kind of error: OpenCV decides, which has a limit of its own.
        pass


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
    image: UInt8[np.ndarray, "H W C"], size: tuple[int, int], random: np.random.Generator
) -> UInt8[np.ndarray, "height width C"]:
    """Cuts out a box of `draw_box` and resizes it to `size`, (height, width), with `resize`."""
    top, left, height, width = draw_box(image.shape[0], image.shape[1], random)
    return resize(image[top : top + height, left : left + width], size)


def random_flip(image: UInt8[np.ndarray, "H W C"], random: np.random.Generator) -> UInt8[np.ndarray, "H W C"]:
    """Mirrors a picture left to right with probability one half."""
    return np.ascontiguousarray(image[:, ::-1]) if random.random() < 0.5 else image
