"""Predictions of a saved classifier for a dataset's test images and for picture files."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from repmlp_jax.data import Dataset, augment, open_dataset
from repmlp_jax.data.decoding import read_image
from repmlp_jax.data.preprocessing import resize_and_crop
from repmlp_jax.models.output_shape import output_shape
from repmlp_jax.storage.models import SavedModel, load
from repmlp_jax.tasks.class_order import class_order
from repmlp_jax.tasks.classification import batch_metrics, check_size, mean_metrics
from repmlp_jax.training import sharding
from repmlp_jax.training.evaluation import Evaluator, ResidentBatches, StreamedBatches

PICTURES_AT_A_TIME = 32


def evaluate(path: str | Path, dataset_name: str, data_dir: str | Path | None = None, batch_size: int = 200) -> dict:
    """Evaluates a saved model on a dataset's test images, or on its validation split if it has one.

    Classes are matched by name, or by number if the model or the dataset has no class names.

    Args:
        path: folder of the saved model.
        dataset_name: as of `open_dataset`; streamed images are resized and cropped to the model's size.
        data_dir: folder of TFDS datasets; None: as of `open_dataset`.
        batch_size: images in a batch, rounded up to a multiple of the number of devices.

    Returns:
        `accuracy` (of 1), `loss` (nats) and the number of `images`.

    Raises:
        FileNotFoundError: if there is no such model, or the dataset is not prepared.
        ValueError: if the sizes of the images, or the names or numbers of classes, of model and dataset differ, or one
            of both is damaged.
    """
    saved = load(path)
    dataset = open_dataset(dataset_name, data_dir, saved.model.input_shape[-1])  # type: ignore[attr-defined]  # as below
    *_, classes = output_shape(saved.model)
    names, called = saved.preprocessing.get("class_names") or (), dict(model=str(path), dataset=dataset_name)
    order = class_order(names, classes, dataset.class_names, dataset.num_classes, **called)
    mesh = sharding.make_mesh()
    batch_size = -(-batch_size // mesh.size) * mesh.size
    if isinstance(dataset, Dataset):
        batches, examples = _resident(saved, path, dataset_name, dataset, batch_size, mesh)
    else:
        batches, examples = _streamed(saved, dataset, batch_size, mesh)

    def logits(model, batch):
        return _logits(saved, model, batch["image"])[:, order]

    evaluator = Evaluator(batches, logits, batch_metrics, mean_metrics, mesh)
    return evaluator.evaluate(saved.model) | dict(images=examples)


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
        pictures: files of the pictures.
        top: number of classes to return for each.

    Returns:
        File → list of (class, probability), the most probable first; the class is a number if the saved model has no
        class names.

    Raises:
        FileNotFoundError: if a file does not exist.
        ValueError: if a file is not a picture.
    """
    saved = load(path)
    height, width, channels = saved.model.input_shape  # type: ignore[attr-defined]  # all of list_models() have it
    names = saved.preprocessing.get("class_names") or [str(number) for number in range(output_shape(saved.model)[-1])]
    forward = jax.jit(lambda model, images: jax.nn.softmax(_logits(saved, model, images).astype(jnp.float32)))
    found = {}
    with tqdm(total=len(pictures), unit=" pictures", delay=2, leave=False) as bar:
        for start in range(0, len(pictures), PICTURES_AT_A_TIME):
            paths = pictures[start : start + PICTURES_AT_A_TIME]
            images = [resize_and_crop(read_image(one, channels), height, width) for one in paths]
            filled = images + [images[-1]] * (min(PICTURES_AT_A_TIME, len(pictures)) - len(images))
            for one, probabilities in zip(paths, np.asarray(forward(saved.model, np.stack(filled))), strict=False):
                best = np.argsort(-probabilities, kind="stable")[:top]
                found[one] = [(names[number], float(probabilities[number])) for number in best]
            bar.update(len(paths))
    return found


def _logits(saved: SavedModel, model, images):
    """The logits of uint8 images; a model saved without mean and std takes images scaled to [0, 1]."""
    channels = images.shape[-1]
    mean = saved.preprocessing.get("mean") or (0.0,) * channels
    std = saved.preprocessing.get("std") or (1.0,) * channels
    return model(augment.normalise(images, mean, std))
