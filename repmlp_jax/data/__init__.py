"""Datasets: those that fit in memory by name, and opening others for streaming."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repmlp_jax.data.checks import check_split
from repmlp_jax.extras import name_extra
from repmlp_jax.nearest import lookup, nearest
from repmlp_jax.storage.preprocessing import Statistics, check_class_names, check_statistics

with name_extra():
    from repmlp_jax.data import cifar10, digits


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images and labels in memory; they are checked when it is made.

    Attributes:
        train: images uint8 (examples, H, W, C) and integer labels (examples,), indices into `class_names`.
        test: other examples in the same format.
        mean: of each channel of images that are scaled to [0, 1].
        std: standard deviation of each channel, above 0.
        class_names: name of each label.

    Raises:
        TypeError: if something is not an array, a list of numbers or a list of names.
        ValueError: if images are not uint8 (N, H, W, C) or differ in size between the splits, their labels are not as
            many integers below the number of names, or a mean or deviation is missing or outside [0, 1].
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    mean: Statistics
    std: Statistics
    class_names: Sequence[str]

    def __post_init__(self):
        check_class_names(self.class_names)
        for split, pair in (("training", self.train), ("test", self.test)):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise TypeError(f"the {split} split must be (images, labels), not a {type(pair).__name__}")
            check_split(*pair, len(self.class_names), split)
        shapes = [tuple(images.shape[1:]) for images, _ in (self.train, self.test)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"the training images have shape {shapes[0]}, the test images {shapes[1]}")
        for name in ("mean", "std"):
            check_statistics(name, getattr(self, name), shapes[0][-1])
            object.__setattr__(self, name, tuple(np.asarray(getattr(self, name)).tolist()))  # as it can be saved

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)


FOLDER = "folder"  # pictures in a folder for each class
LOADERS = {
    "cifar10": lambda data_dir: (cifar10, cifar10.load_cifar10(data_dir)),
    "digits": lambda data_dir: (digits, digits.load_digits()),
}


def load_dataset(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Reads a dataset into memory.

    Args:
        name: "cifar10" or "digits".
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.

    Raises:
        ValueError: if there is no such dataset; the message names the nearest. As `Dataset`.
        FileNotFoundError: if it is not prepared and cannot be downloaded.
    """
    module, splits = lookup(LOADERS, name, "dataset")(data_dir)
    return Dataset(splits["train"], splits["test"], module.MEAN, module.STD, module.CLASS_NAMES)


def open_dataset(
    name: str,
    data_dir: str | Path | None = None,
    channels: int = 3,
    *,
    val_share: float = 0.0,
    needs_train: bool = True,
):
    """Reads a dataset into memory if it fits, and otherwise opens it for streaming.

    Args:
        name: as of `load_dataset`, or "folder" for pictures in a folder for each class, or the name of a TFDS dataset
            of images with one label each.
        data_dir: as of `load_dataset`, or of "folder" as of `load_folder`.
        channels: of streamed images, as of `load_imagenet`; those of a dataset in memory have the ones they have.
        val_share: of "folder", as of `load_folder`.
        needs_train: of "folder", as of `load_folder`.

    Returns:
        A `Dataset`, or `imagenet.EncodedImages`.

    Raises:
        TypeError: if the name is not a string.
        ValueError: if TFDS does not know the name, and it resembles that of a dataset that fits in memory; the message
            names it. As `Dataset`, `load_imagenet` and `load_folder`.
        FileNotFoundError: if the dataset is not prepared in the folder; the message says how to.
    """
    if isinstance(name, str) and name in LOADERS:
        return load_dataset(name, data_dir)
    if name == FOLDER:
        from repmlp_jax.data.class_folders import load_folder

        return load_folder(data_dir, channels, val_share, needs_train=needs_train)
    from repmlp_jax.data.imagenet import load_imagenet

    try:
        return load_imagenet(data_dir, name, channels)
    except FileNotFoundError:
        import tensorflow_datasets as tfds

        is_known = name.partition(":")[0] in tfds.list_builders(with_community_datasets=False)
        others: dict = {**LOADERS, FOLDER: None}
        if not is_known and nearest(name, others, cutoff=0.6):
            lookup(others, name, "dataset")  # raises an error that names the nearest
        raise
