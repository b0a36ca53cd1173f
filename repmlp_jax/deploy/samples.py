"""Some images of a dataset as a saved classifier takes them: to calibrate with, and others to test on."""

from pathlib import Path

import numpy as np

from repmlp_jax.data import Dataset
from repmlp_jax.deploy.predict import open_with_classes_of
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.storage.models import SavedModel
from repmlp_jax.tasks.classification import check_size

CALIBRATION, TEST = 256, 2000


def samples(saved: SavedModel, path: str | Path, dataset_name: str, data_dir: str | Path | None = None):
    """Up to 256 training images, and up to 2,000 test images with the numbers of their classes in the model.

    They are spread evenly over the dataset.

    Args:
        saved: a saved classifier.
        path: its folder, for messages.
        dataset_name: as of `open_dataset`; streamed images are resized and cropped to the model's size.
        data_dir: as of `open_dataset`.

    Returns:
        images uint8 (N, H, W, C), and (images, numbers).

    Raises:
        FileNotFoundError, ValueError: as `evaluate`.
    """
    height, width, channels = shape = input_shape_of(saved.model)
    dataset, order = open_with_classes_of(saved, path, dataset_name, data_dir)
    if isinstance(dataset, Dataset):
        check_size(path, shape, dataset_name, dataset.test[0].shape[1:])
        (train, _), (test, labels) = dataset.train, dataset.test
        chosen = _spread(len(test), TEST)
        return train[_spread(len(train), CALIBRATION)], (test[chosen], order[labels[chosen]])
    from repmlp_jax.data.imagenet import evaluation_example

    def read(source, most):
        examples = [
            evaluation_example(
                source[int(index)], size=(height, width), num_classes=dataset.num_classes, channels=channels
            )
            for index in _spread(len(source), most)
        ]
        return np.stack([each["image"] for each in examples]), np.stack([each["label"] for each in examples])

    train, _ = read(dataset.train, CALIBRATION)
    test, labels = read(dataset.validation, TEST)
    return train, (test, order[labels])


def _spread(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).astype(int)
