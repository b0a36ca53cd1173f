"""What is saved with a model about its images and classes, and what it has to be."""

import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.output_shape import output_shape

Statistics = Sequence[float] | Float[Array | np.ndarray, " channels"]

# Per channel (red, green, blue) of the training images, scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Measured on JPEG copies, which have the same mean and a standard deviation that is less than 1 % smaller.
CIFAR10_MEAN = (0.4913, 0.4821, 0.4465)
CIFAR10_STD = (0.2452, 0.2428, 0.2606)
# The share of the shorter side that the centre crop keeps: 224 of 256 pixels.
CENTRE = 0.875


def check_preprocessing(preprocessing: Mapping[str, Any], *, channels: int, classes: int | None = None):
    """Refuses preprocessing that cannot be saved as it is, or that does not belong to the model or dataset.

    Args:
        preprocessing: "mean", "std" and "class_names", all optional, and any others that JSON can hold.
        channels: of the images.
        classes: number of classes; None: the one that `class_names` say.

    Raises:
        TypeError: if it is not a dictionary with string keys, or holds what JSON cannot, such as NumPy arrays.
        ValueError: if a number is NaN or infinite, a channel has no mean or deviation within [0, 1], a deviation is 0,
            or there is not one name for each class.
    """
    if not isinstance(preprocessing, Mapping):
        raise TypeError(f"preprocessing must be a dictionary, not a {type(preprocessing).__name__}")
    _check_keys(preprocessing)
    for name in ("mean", "std"):
        if preprocessing.get(name) is not None:
            check_statistics(name, preprocessing[name], channels)
    names = preprocessing.get("class_names")
    if names is not None:
        check_class_names(names)
    if names and classes not in (None, len(names)):
        raise ValueError(f"class_names has {len(names)} names, and there are {classes} classes")
    for name, value in preprocessing.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}, a {type(value).__name__}, cannot be saved as JSON: {error}") from None


def check_preprocessing_of(model: Any, preprocessing: Mapping[str, Any] | None):
    """Refuses preprocessing that does not belong to a model; see `check_preprocessing`."""
    if preprocessing is None or preprocessing == {}:
        return
    has_names = isinstance(preprocessing, Mapping) and preprocessing.get("class_names") is not None
    classes = output_shape(model)[-1] if has_names else None
    check_preprocessing(preprocessing, channels=input_shape_of(model)[-1], classes=classes)


def check_class_names(names: Sequence[str]):
    """Raises TypeError for class names that are not a list of strings."""
    if not (_is_sequence(names) and all(isinstance(name, str) for name in names)):
        raise TypeError(f"class_names must be a list of strings, not {names!r}")


def check_statistics(name: str, values: Statistics, channels: int):
    """Refuses a "mean" or "std" that is not one number for each channel of images scaled to [0, 1].

    Of traced arrays only the shape is known.

    Raises:
        TypeError: if `values` is not a list of numbers.
        ValueError: if there is not one for each channel, one is outside [0, 1], or a deviation is 0.
    """
    if isinstance(values, jax.core.Tracer) and values.shape == (channels,):
        return
    if isinstance(values, jax.Array | np.ndarray):
        values = values.tolist()
    if not (_is_sequence(values) and all(isinstance(value, numbers.Real) for value in values)):
        raise TypeError(f"{name} must be a list of numbers, one for each channel, not {values!r}")
    if len(values) != channels:
        raise ValueError(f"{name} has {len(values)} values, and the images have {channels} channels")
    found = [float(value) for value in values]
    if not all(0 <= value <= 1 for value in found):
        hint = "; divide by 255" if all(0 <= value <= 255 for value in found) else ""
        raise ValueError(f"{name} is {found}, and must lie within 0 and 1, as of images scaled to [0, 1]{hint}")
    if name == "std" and not all(found):
        raise ValueError(f"std is {found}: a channel without deviation cannot be divided by it")


def _is_sequence(values) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str | bytes)


def _check_keys(value):
    """Refuses keys that JSON would turn into strings, at any depth."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            if not isinstance(key, str):
                raise TypeError(f"preprocessing has the key {key!r}, a {type(key).__name__}: keys must be strings")
            _check_keys(entry)
    elif _is_sequence(value):
        for entry in value:
            _check_keys(entry)


def statistics_of(preprocessing: dict, channels: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std of the channels of images scaled to [0, 1]; without them 0 and 1, as such images are left so."""
    return preprocessing.get("mean") or (0.0,) * channels, preprocessing.get("std") or (1.0,) * channels


def normalised(
    images: UInt8[Array, "N H W C"], mean: Statistics, std: Statistics, dtype: DTypeLike = jnp.float32
) -> Float[Array, "N H W C"]:
    """Scales images to [0, 1], then subtracts `mean` and divides by `std`; neither of them is checked."""
    offset, scale = (jnp.asarray(values, dtype).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images.astype(dtype) / 255 - offset) / scale
