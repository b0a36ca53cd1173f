"""Reading, resizing and cropping pictures for a classifier."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from repmlp_jax.local_path import local_path

# Per channel (red, green, blue) of ImageNet's images, scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# The share of the shorter side that the centre crop keeps: 224 of 256 pixels.
CENTRE = 0.875


def read_image(path: str | Path, channels: int) -> UInt8[np.ndarray, "H W C"]:
    """Reads a picture in RGB if `channels` is 3, in grey if it is 1.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a picture, or `channels` is neither 1 nor 3.
    """
    if channels not in (1, 3):
        raise ValueError(f"a picture has 1 or 3 channels, the model takes {channels}")
    path = local_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise ValueError(f"{path} is no picture that can be read")
    return image[..., None] if channels == 1 else image


def resize(image: UInt8[np.ndarray, "H W C"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width C"]:
    """Resizes a picture to (height, width) without keeping its proportions.

    A smaller size averages pixels; otherwise they are interpolated linearly.
    """
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    # INTER_AREA averages pixels, but does not interpolate when it enlarges.
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops the axis of a single channel.


def resize_and_crop(image: UInt8[np.ndarray, "H W C"], height: int, width: int) -> UInt8[np.ndarray, "height width C"]:
    """Resizes a picture and crops its centre to (height, width), as in the evaluation of ImageNet.

    The picture is scaled to cover (height, width) / 0.875. A picture that is not larger than (height, width) is scaled
    to cover (height, width), since small datasets are not cropped.
    """
    is_small = image.shape[0] <= height and image.shape[1] <= width
    scale = max(height / image.shape[0], width / image.shape[1]) / (1 if is_small else CENTRE)
    size = [max(round(side * scale), least) for side, least in zip(image.shape[:2], (height, width), strict=True)]
    # INTER_AREA averages pixels, like antialiased bilinear interpolation, but does not enlarge.
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size[1], size[0]), interpolation=method).reshape(*size, image.shape[2])
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return resized[top : top + height, left : left + width]
