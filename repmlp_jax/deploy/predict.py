"""Predictions of a saved classifier for a dataset's test images and for picture files."""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repmlp_jax.data import Dataset, augment, open_dataset
from repmlp_jax.data.decoding import read_image
from repmlp_jax.data.picture_files import pictures_in
from repmlp_jax.data.preprocessing import resize_and_crop
from repmlp_jax.fusing.arguments import checked, whole_number
from repmlp_jax.local_path import local_path
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.output_shape import output_shape
from repmlp_jax.progress import progress_bar
from repmlp_jax.storage.configuration import configuration_of
from repmlp_jax.storage.models import SavedModel, load
from repmlp_jax.tasks.class_order import class_order
from repmlp_jax.tasks.class_scores import batch_metrics, extra_scores, mean_metrics
from repmlp_jax.tasks.classification import check_size
from repmlp_jax.training import sharding
from repmlp_jax.training.evaluation import Evaluator, ResidentBatches, StreamedBatches

PICTURES_AT_A_TIME = 32


@checked
def evaluate(path: str | Path, dataset_name: str, data_dir: str | Path | None = None, batch_size: int = 200) -> dict:
    """Evaluates a saved model on a dataset's test images, or on its validation split if it has one.

    Classes are matched by name, or by number if the model or the dataset has no class names.

    Args:
        path: folder of the saved model.
        dataset_name: as of `open_dataset`; streamed images are resized and cropped to the model's size. Of a "folder"
            without `val/` or `test/` all pictures count, or, if the model was trained with `val_share`, this share.
        data_dir: as of `open_dataset`.
        batch_size: images in a batch, rounded up to a multiple of the number of devices.

    Returns:
        `accuracy` (of 1), `loss` (nats) and the number of `images`; with 100 classes and more also `top_5_accuracy`.

    Raises:
        TypeError: if `dataset_name` is not a string, or `batch_size` not an integer.
        FileNotFoundError: if there is no such model, or the dataset is not prepared.
        ValueError: if `batch_size` is below 1, the model is not a classifier, the sizes of the images, or the names or
            numbers of classes, of model and dataset differ, or one of both is damaged.
    """
    whole_number("batch_size", batch_size, 1)
    saved = load(path)
    dataset, order = open_with_classes_of(saved, path, dataset_name, data_dir, needs_train=False)
    mesh = sharding.make_mesh()
    batch_size = sharding.rounded_up(batch_size, mesh)
    if isinstance(dataset, Dataset):
        batches, examples = _resident(saved, path, dataset_name, dataset, batch_size, mesh)
    else:
        batches, examples = _streamed(saved, dataset, batch_size, mesh)

    def logits(model, batch):
        return _logits(saved, model, batch["image"])[:, order]

    extra = extra_scores(len(order))
    of_batch = functools.partial(batch_metrics, extra=extra)
    evaluator = Evaluator(batches, logits, of_batch, functools.partial(mean_metrics, extra=extra), mesh)
    return evaluator.evaluate(saved.model) | dict(images=examples)


def open_with_classes_of(
    saved: SavedModel, path: str | Path, dataset_name: str, data_dir: str | Path | None, *, needs_train: bool = True
) -> tuple[Any, np.ndarray]:
    """Opens a dataset whose classes a saved classifier has; returns it, and the model's class for each of its own.

    Raises as `evaluate`.
    """
    classes = number_of_classes(saved, path)
    options: dict = dict(val_share=saved.preprocessing.get("val_share", 0.0), needs_train=needs_train)
    dataset = open_dataset(dataset_name, data_dir, input_shape_of(saved.model)[-1], **options)
    names, called = saved.preprocessing.get("class_names") or (), dict(model=str(path), dataset=dataset_name)
    return dataset, class_order(names, classes, dataset.class_names, dataset.num_classes, **called)


def _resident(saved, path, dataset_name, dataset, batch_size, mesh):
    images, labels = dataset.test
    check_size(path, saved.model.input_shape, dataset_name, images.shape[1:])
    return ResidentBatches(dict(image=images, label=labels), batch_size, mesh), len(labels)


def _streamed(saved, dataset, batch_size, mesh):
    from repmlp_jax.data.imagenet import evaluation_example
    from repmlp_jax.data.stream import evaluation_stream

    *size, channels = saved.model.input_shape
    example = functools.partial(
        evaluation_example, size=tuple(size), num_classes=dataset.num_classes, channels=channels
    )

    def open_stream():
        return evaluation_stream(dataset.validation, example, batch_size=batch_size)

    return StreamedBatches(open_stream, mesh), len(dataset.validation)


def predict(path: str | Path, pictures: Sequence[str | Path], top: int = 5) -> dict:
    """Classifies pictures.

    Args:
        path: folder of the saved model.
        pictures: files of the pictures, and folders, of which all pictures are taken as `pictures_in` finds them. They
            are turned as their EXIF orientation says, since people see them so; the pictures of datasets are not, since
            published results ignore it.
        top: number of classes to return for each.

    Returns:
        File → list of (class, probability), the most probable first; the class is a number if the saved model has no
        class names. A file that is given twice has one entry.

    Raises:
        FileNotFoundError: if a file does not exist.
        TypeError: if `pictures` is not a list of paths, or `top` is not an integer.
        ValueError: if a file is not a picture or larger than `decoding.decode` takes, a folder holds none, `top` is
            below 1, or the model is not a classifier of pictures.
    """
    found = {}
    for picture, classes in predictions(path, pictures, top):
        if isinstance(classes, Exception):
            raise classes
        found[picture] = classes
    return found


@checked
def predictions(
    path: str | Path, pictures: Sequence[str | Path], top: int = 5
) -> Iterator[tuple[str | Path, list[tuple[str, float]] | Exception]]:
    """Classifies pictures as `predict` does; yields each in the order given, with the error of one that is not read."""
    if isinstance(pictures, str | os.PathLike):
        raise TypeError(f"pictures must be a list of files, not one file: use [{os.fspath(pictures)!r}]")
    if not isinstance(pictures, Sequence) or not all(isinstance(one, str | os.PathLike) for one in pictures):
        raise TypeError(f"pictures={pictures!r:.80} must be a list of paths of files")
    whole_number("top", top, 1)
    pictures = [file for one in pictures for file in _files(one)]
    saved = load(path)
    configuration = configuration_of(saved)
    height, width, channels = configuration.input_size
    if channels not in (1, 3):
        raise ValueError(f"{path} takes images of {channels} channels, and a picture has 1 or 3")
    classes = number_of_classes(saved, path)
    names = saved.preprocessing.get("class_names") or [str(number) for number in range(classes)]
    if len(names) != classes:
        raise ValueError(f"{path} has {classes} classes and {len(names)} class names")
    forward = jax.jit(lambda model, images: jax.nn.softmax(_logits(saved, model, images).astype(jnp.float32)))

    def read(picture):
        try:
            return resize_and_crop(read_image(picture, channels), height, width, configuration.crop)
        except (ValueError, OSError) as error:
            return error

    with progress_bar(total=len(pictures), unit=" pictures", delay=2, leave=False) as bar:
        for start in range(0, len(pictures), PICTURES_AT_A_TIME):
            chosen = pictures[start : start + PICTURES_AT_A_TIME]
            images = [read(one) for one in chosen]
            sound = [image for image in images if not isinstance(image, Exception)]
            filled = sound + sound[-1:] * (min(PICTURES_AT_A_TIME, len(pictures)) - len(sound))
            outputs = iter(np.asarray(forward(saved.model, np.stack(filled))) if sound else ())
            for one, image in zip(chosen, images, strict=True):
                yield one, image if isinstance(image, Exception) else _best(next(outputs), names, top)
            bar.update(len(chosen))


def _files(picture: str | Path) -> list[str | Path]:
    """The file that is named, or the pictures of a folder."""
    if not (folder := local_path(picture)).is_dir():
        return [picture]
    found, left_out = pictures_in(folder)
    if not found:
        raise ValueError(f"{folder} holds no picture, and {left_out.total()} other files")
    return list(found)


def _best(probabilities, names, top) -> list[tuple[str, float]]:
    order = np.argsort(-probabilities, kind="stable")[:top]
    return [(names[number], float(probabilities[number])) for number in order]


def number_of_classes(saved: SavedModel, path) -> int:
    """The number of classes of a classifier; refuses embeddings, features, and a class for every pixel."""
    shape = output_shape(saved.model)
    if len(shape) != 1 or not json.loads(getattr(saved.model, "arguments", "{}")).get("num_classes"):
        raise ValueError(
            f"{path} is a {type(saved.model).__name__} whose output for an image, of shape {shape}, is not a number "
            f"for each class: it takes a classifier, which is built with num_classes"
        )
    return shape[0]


def _logits(saved: SavedModel, model, images):
    """The logits of uint8 images; a model saved without mean and std takes images scaled to [0, 1]."""
    configuration = configuration_of(saved)
    return model(augment.normalise(images, configuration.mean, configuration.std))
