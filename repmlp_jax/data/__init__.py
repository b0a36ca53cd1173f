"""Datasets: those that fit in memory by name, and opening others for streaming."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from repmlp_jax.data import cifar10, digits
from repmlp_jax.nearest import lookup, nearest


class Dataset(NamedTuple):
    """Images and labels in memory.

    Attributes:
        train: images uint8 (examples, H, W, C) and labels int32 (examples,).
        test: other examples in the same format.
        mean: of each channel of images that are scaled to [0, 1].
        std: standard deviation of each channel.
        class_names: name of each label.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    mean: Sequence[float]
    std: Sequence[float]
    class_names: Sequence[str]


LOADERS = {
    "cifar10": lambda data_dir: (cifar10, cifar10.load_cifar10(data_dir)),
    "digits": lambda data_dir: (digits, digits.load_digits()),
}


def load_dataset(name: str, data_dir: str | None = None) -> Dataset:
    """Reads a dataset into memory.

    Args:
        name: "cifar10" or "digits".
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.

    Raises:
        ValueError: if there is no such dataset; the message names the nearest.
        FileNotFoundError: if it is not prepared and cannot be downloaded.
    """
    module, splits = lookup(LOADERS, name, "dataset")(data_dir)
    return Dataset(splits["train"], splits["test"], module.MEAN, module.STD, module.CLASS_NAMES)


def open_dataset(name: str, data_dir: str | None = None):
    """Reads a dataset into memory if it fits, and otherwise opens it for streaming.

    Args:
        name: as of `load_dataset`, or the name of a TFDS dataset of images with one label each.
        data_dir: as of `load_dataset`.

    Returns:
        A `Dataset`, or `imagenet.EncodedImages`.

    Raises:
        ValueError: if the name resembles that of a dataset that fits in memory; the message names it.
        FileNotFoundError: if the dataset is not prepared in the folder.
    """
    if name in LOADERS:
        return load_dataset(name, data_dir)
    from repmlp_jax.data.imagenet import load_imagenet

    try:
        return load_imagenet(data_dir, name)
    except FileNotFoundError:
        if nearest(name, LOADERS, cutoff=0.6):
            load_dataset(name)  # raises an error that names the nearest
        raise
