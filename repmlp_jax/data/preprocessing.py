"""Resizing and cropping pictures for a classifier."""

import math

import cv2
import numpy as np
from jaxtyping import UInt8

from repmlp_jax.data.checks import check_picture, height_and_width
from repmlp_jax.fusing.arguments import whole_number
from repmlp_jax.storage.preprocessing import CENTRE
from repmlp_jax.storage.preprocessing import IMAGENET_MEAN as IMAGENET_MEAN
from repmlp_jax.storage.preprocessing import IMAGENET_STD as IMAGENET_STD

# Of a picture that is longer than this many crops only the middle is resized: a thin one has millions of pixels then.
LONGEST = 16


def resize(image: UInt8[np.ndarray, "H W C"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width C"]:
    """Resizes a picture to (height, width) without keeping its proportions.

    A smaller size averages pixels; otherwise they are interpolated linearly.

    Raises:
        TypeError: if the picture is not an array, or `size` not two whole numbers.
        ValueError: if the picture is not (H, W, C), or it or the size is empty.
    """
    check_picture(image)
    size = height_and_width("size", size)
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    # INTER_AREA averages pixels, but does not interpolate when it enlarges.
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops the axis of a single channel.


def resize_and_crop(
    image: UInt8[np.ndarray, "H W C"], height: int, width: int, crop: float = CENTRE
) -> UInt8[np.ndarray, "height width C"]:
    """Resizes a picture and crops its centre to (height, width), as in the evaluation of ImageNet.

    The picture is scaled to cover (height, width) / crop. A picture that is not larger than (height, width) is scaled
    to cover (height, width), since small datasets are not cropped. Besides the picture it takes memory for at most 16
    times (height, width) / crop, whatever the picture's proportions are.

    Raises:
        TypeError: if the picture is not an array, or `height` or `width` not a whole number.
        ValueError: if the picture is not (H, W, C), or it or the size is empty.
    """
    check_picture(image)
    height, width = whole_number("height", height, 1), whole_number("width", width, 1)
    is_small = image.shape[0] <= height and image.shape[1] <= width
    scale = max(height / image.shape[0], width / image.shape[1]) / (1 if is_small else crop)
    image = _middle(image, math.ceil(LONGEST * height / scale), math.ceil(LONGEST * width / scale))
    size = [max(round(side * scale), least) for side, least in zip(image.shape[:2], (height, width), strict=True)]
    # INTER_AREA averages pixels, like antialiased bilinear interpolation, but does not enlarge.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size[1], size[0]), interpolation=method).reshape(*size, image.shape[2])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[top : top + height, left : left + width]


def _middle(image, most_rows, most_columns):
    """The middle of a picture, of at most so many rows and columns."""
    top, left = max(0, image.shape[0] - most_rows) // 2, max(0, image.shape[1] - most_columns) // 2
    return image[top : top + most_rows, left : left + most_columns]
