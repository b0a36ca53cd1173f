"""Faces as NumPy arrays, read through TensorFlow Datasets without TensorFlow."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32, UInt8

from repmlp_jax.data.checks import check_split
from repmlp_jax.data.prepared import check_features, check_splits, open_prepared
from repmlp_jax.data.preprocessing import resize
from repmlp_jax.listing import listed
from repmlp_jax.storage.preprocessing import check_statistics

IMAGES_PER_READ = 1000


class Faces(NamedTuple):
    """Faces in memory; no person is in both splits.

    Attributes:
        train: images uint8 (examples, H, W, C) and class numbers int32 (examples,), from 0 without gaps.
        test: images and the dataset's own labels, int32.
        mean: of each channel of the training images, which are scaled to [0, 1].
        std: standard deviation of each channel.
        people: the dataset's own label for each class number.
    """

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    mean: Sequence[float]
    std: Sequence[float]
    people: Sequence[int]


def load_faces(
    name: str = "orl_faces", data_dir: str | Path | None = None, image_size: tuple[int, int] = (96, 96)
) -> Faces:
    """Reads a prepared dataset of faces into memory; no person of the test split may be in the training split.

    Images are resized to `image_size` without keeping their proportions, so that no part of a face is cut off.

    Args:
        name: a dataset with splits "train" and "test" and features "image" and "label"; its version may follow a colon.
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.
        image_size: (height, width) of the images, in pixels.

    Raises:
        FileNotFoundError: as `open_prepared`.
        ValueError: as `open_prepared`, or if it lacks a split or a feature, its images are not uint8 or differ in
            channels, its labels are not integers from 0, a channel is the same all over the training images, or a
            person is in both splits.
    """
    sources = _open(name, data_dir, {"train", "test"})
    train_images, train_labels = _read(name, "train", sources, image_size)
    test_images, test_labels = _read(name, "test", sources, image_size)
    _check_unseen(name, train_labels, test_labels)
    people, classes = np.unique(train_labels, return_inverse=True)
    scaled = train_images.reshape(-1, train_images.shape[-1]).astype(np.float64) / 255
    mean, std = tuple(scaled.mean(0).tolist()), tuple(scaled.std(0).tolist())
    check_statistics("std", std, len(std))
    return Faces(
        (train_images, classes.astype(np.int32)), (test_images, test_labels), mean, std, tuple(people.tolist())
    )


def load_test_faces(
    name: str, data_dir: str | Path | None = None, image_size: tuple[int, int] = (96, 96)
) -> tuple[UInt8[np.ndarray, "N H W C"], Int32[np.ndarray, " N"]]:
    """Reads the split "test" alone, for a model that is trained on streamed faces.

    The arguments are those of `load_faces`; the dataset needs no split "train".

    Returns:
        The images and the dataset's own labels.

    Raises:
        FileNotFoundError: as `load_faces`.
        ValueError: as `open_prepared`, or if there is no split "test", it lacks a feature, its images are not uint8 or
            differ in channels, or its labels are not integers from 0.
    """
    return _read(name, "test", _open(name, data_dir, {"test"}), image_size)


def pixels(images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N features"]:
    """The pixels as embeddings, a baseline for every model. Their cosines are all near 1."""
    return images.reshape(len(images), -1).astype(np.float64)


def centred_pixels(images: UInt8[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N features"]:
    """The pixels minus the mean of their image: a stronger baseline.

    Their cosine is the correlation of two images, which depends neither on brightness nor on contrast.
    """
    flat = pixels(images)
    return flat - flat.mean(1, keepdims=True)


def _open(name, data_dir, splits):
    info, sources = open_prepared(name, data_dir)
    check_features(name, info, ("image", "label"))
    check_splits(name, sources, splits)
    return sources


def _read(name, split, sources, image_size):
    source = sources[split]
    images, labels = [], []
    for start in range(0, len(source), IMAGES_PER_READ):
        # Reading many records at once is faster than indexing them one by one.
        for example in source.__getitems__(range(start, min(start + IMAGES_PER_READ, len(source)))):
            images.append(resize(example["image"], image_size))
            labels.append(example["label"])
    channels = {image.shape[-1] for image in images}
    if len(channels) != 1:
        raise ValueError(f"the {len(images)} images of a split of {name} have {sorted(channels)} channels, not one")
    faces, people = np.stack(images), np.array(labels)
    check_split(faces, people, None, f"{name} {split}")
    return faces, people.astype(np.int32)


def _check_unseen(name, train_labels, test_labels):
    if len(seen := np.intersect1d(train_labels, test_labels)):
        raise ValueError(
            f"{len(seen)} of the {len(np.unique(test_labels))} people of {name}'s test split are in its training split "
            f"(labels {listed(seen)}): verification needs people who were not trained on"
        )
