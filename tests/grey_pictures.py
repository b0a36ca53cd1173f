"""A small TFDS dataset of grey pictures, as MNIST is one: a bright bar, upright or lying, and no class names."""

import io

import cv2
import numpy as np
import tensorflow_datasets as tfds

TRAIN, TEST = 48, 16


class Bars(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Bars in noise."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, *, names=None, **kwargs):
        self.names = names
        super().__init__(**kwargs)

    def _info(self):
        label = tfds.features.ClassLabel(names=self.names) if self.names else tfds.features.ClassLabel(num_classes=2)
        features = {"image": tfds.features.Image(shape=(12, 12, 1)), "label": label}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, TRAIN), "test": self._generate_examples(1000, TEST)}

    def _generate_examples(self, first, count):
        for number in range(first, first + count):
            image, label = bar(number)
            yield number, {"image": io.BytesIO(cv2.imencode(".png", image)[1].tobytes()), "label": label}


def bar(number):
    """A picture, uint8 (12, 12), and its label: 0 for an upright bar, 1 for a lying one."""
    random = np.random.default_rng(number)
    image = random.integers(0, 120, (12, 12), np.uint8)
    place, label = random.integers(4, 8), number % 2
    if label:
        image[place] = 255
    else:
        image[:, place] = 255
    return image, label


def prepare(folder, **options):
    """Writes the dataset into a folder of TFDS datasets, and returns the dataset's own folder."""
    builder = Bars(data_dir=folder, file_format="array_record", **options)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return folder / "bars" / "1.0.0"
