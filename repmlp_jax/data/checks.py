"""What images, labels and numbers have to be, in memory and one at a time."""

from typing import Any

import numpy as np

from repmlp_jax.fusing.arguments import whole_number


def check_array(array: Any, what: str):
    """Raises TypeError for what is not an array, of NumPy or JAX."""
    if not (hasattr(array, "dtype") and hasattr(array, "shape")):
        raise TypeError(f"{what} must be an array, not a {type(array).__name__}")


def check_images(images: Any, what: str = "the images"):
    """Refuses what is not a batch of uint8 images (N, H, W, C), of NumPy or JAX.

    Raises:
        TypeError: if it is not an array.
        ValueError: if its dtype or shape is another.
    """
    check_array(images, what)
    if images.dtype != np.uint8 or len(images.shape) != 4 or 0 in images.shape[1:]:
        hint = "; multiply by 255 and round" if np.issubdtype(images.dtype, np.floating) else ""
        raise ValueError(f"{what} must be uint8 (N, H, W, C), not {images.dtype} {tuple(images.shape)}{hint}")


def check_picture(image: Any):
    """Refuses what is not one picture (H, W, C) with pixels.

    Raises:
        TypeError: if it is not an array.
        ValueError: if its shape is another.
    """
    check_array(image, "the image")
    if len(image.shape) != 3 or 0 in image.shape:
        raise ValueError(f"the image must be (H, W, C) with at least one pixel, not of shape {image.shape}")


def check_labels(labels: Any, classes: int | None, what: str = "the labels"):
    """Refuses what is not an array of integers (N,) from 0 to `classes` − 1, or that int32 can hold if it is None.

    Raises:
        TypeError: if it is not an array.
        ValueError: if its dtype or shape is another, or a label is not a class; the message counts these.
    """
    check_array(labels, what)
    if not np.issubdtype(labels.dtype, np.integer) or len(labels.shape) != 1:
        hint = "; one-hot labels become so by .argmax(1)" if len(labels.shape) == 2 else ""
        raise ValueError(f"{what} must be integers (N,), not {labels.dtype} {tuple(labels.shape)}{hint}")
    values = np.asarray(labels)
    if strays := int(((values < 0) | (values > _last(classes))).sum()):
        raise ValueError(
            f"{what} go from {values.min()} to {values.max()}, and classes are numbered 0 to {_last(classes)}: "
            f"{strays} of {len(values)} labels are not classes"
        )


def check_label(label: Any, classes: int | None) -> np.int32:
    """One label of a streamed example, as int32.

    Raises:
        ValueError: if it is not an integer from 0 to `classes` − 1, or that int32 can hold if it is None.
    """
    value = np.asarray(label)
    if not np.issubdtype(value.dtype, np.integer) or value.shape != ():
        raise ValueError(f"the label must be one integer, not {value.dtype} {value.shape}")
    if not 0 <= value <= _last(classes):
        raise ValueError(f"the label is {value}, and classes are numbered 0 to {_last(classes)}")
    return np.int32(value)


def check_split(images: Any, labels: Any, classes: int | None, split: str):
    """Refuses a split in memory that is not uint8 images (N, H, W, C) with as many labels, each a class.

    Raises:
        TypeError: as `check_images` and `check_labels`.
        ValueError: as they do, and if the split is empty or the numbers of images and labels differ.
    """
    check_images(images, f"the {split} images")
    check_labels(labels, classes, f"the {split} labels")
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"the {split} split has {len(images)} images and {len(labels)} labels, not one for each image")


def height_and_width(name: str, value: Any) -> tuple[int, int]:
    """A size (height, width) in pixels, as Python's integers.

    Raises:
        TypeError: if it is not two whole numbers; the message names the argument.
        ValueError: if one of them is below 1.
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"{name} must be (height, width), two whole numbers, not {value!r}")
    height, width = (whole_number(name, side, 1) for side in value)
    return height, width


def check_random(random: Any):
    """Raises TypeError for a source of random numbers that is not `numpy.random.default_rng(seed)`."""
    if not isinstance(random, np.random.Generator):
        raise TypeError(f"random must be a numpy.random.Generator, as default_rng(seed) makes it, not {random!r}")


def _last(classes: int | None) -> int:
    return np.iinfo(np.int32).max if classes is None else classes - 1
