"""CIFAR-10 in one file of encoded pictures and their labels, for machines without TFDS."""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from repmlp_jax.data.checks import check_labels
from repmlp_jax.listing import listed
from repmlp_jax.local_path import local_path
from repmlp_jax.storage.whole_file import whole_file

SPLITS = ("train", "test")


def write_packed(path: str | Path, splits: dict[str, Iterable[tuple[bytes, int]]], *, overwrite: bool = False):
    """Writes encoded pictures with their labels.

    Args:
        path: the file, `.npz`; missing parents are created.
        splits: "train" and "test" → pairs of an encoded picture, such as the bytes of a PNG file, and its label.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        ValueError: if a split is missing or empty, or its labels are not integers from 0.
    """
    arrays = {}
    for split in SPLITS:
        if not (examples := list(splits.get(split, ()))):
            raise ValueError(f"there are no pictures of split {split!r}; it takes {' and '.join(SPLITS)}")
        pictures, labels = zip(*examples, strict=True)
        arrays[f"{split}_pictures"] = np.frombuffer(b"".join(pictures), np.uint8)
        arrays[f"{split}_lengths"] = np.array([len(picture) for picture in pictures], np.int32)
        check_labels(numbers := np.array(labels), None, f"the labels of {split!r}")
        arrays[f"{split}_labels"] = numbers.astype(np.int32)
    with whole_file(path, overwrite) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_packed(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads and decodes a file of `write_packed`.

    Returns:
        "train" and "test" → images uint8 (examples, H, W, 3) in RGB, labels int32 (examples,).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged or another kind of file, or a picture in it cannot be decoded.
    """
    path = local_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for split in SPLITS for name in _names(split)}
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or no file of packed pictures ({type(error).__name__})") from error
    return {split: _decode(path, *(arrays[name] for name in _names(split))) for split in SPLITS}


def _names(split):
    return f"{split}_pictures", f"{split}_lengths", f"{split}_labels"


def _decode(path, pictures, lengths, labels):
    if len(lengths) != len(labels) or lengths.sum() != len(pictures):
        raise ValueError(
            f"{path} is damaged: it has {len(lengths)} pictures of {lengths.sum()} bytes, {len(labels)} labels and "
            f"{len(pictures)} bytes"
        )
    images = []
    for number, picture in enumerate(np.split(pictures, np.cumsum(lengths)[:-1])):
        image = cv2.imdecode(picture, cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise ValueError(f"{path}: picture {number} of {len(lengths)} cannot be decoded")
        images.append(image)
    if len(shapes := {image.shape for image in images}) != 1:
        raise ValueError(
            f"the {len(images)} pictures of {path} have {len(shapes)} sizes, {listed(sorted(shapes))}, not one"
        )
    return np.stack(images), labels
