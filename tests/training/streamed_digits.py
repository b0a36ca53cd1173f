"""The digits as a TFDS dataset of encoded pictures, some of them damaged, which is streamed as ImageNet is."""

import io

import cv2
import tensorflow_datasets as tfds

from repmlp_jax.data import load_dataset


class StreamedDigits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Every `damaged_every`-th training picture is cut short; 0: none is."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None

    def __init__(self, *, damaged_every, **kwargs):
        self.damaged_every = damaged_every
        super().__init__(**kwargs)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(num_classes=10)}
            ),
        )

    def _split_generators(self, dl_manager):
        digits = load_dataset("digits")
        return {
            "train": self._generate_examples(digits.train, self.damaged_every),
            "test": self._generate_examples(digits.test, 0),
        }

    def _generate_examples(self, split, damaged_every):
        for index, (image, label) in enumerate(zip(*split, strict=True)):
            encoded = cv2.imencode(".png", image)[1].tobytes()
            if damaged_every and index % damaged_every == 0:
                encoded = encoded[: len(encoded) // 2]
            yield index, {"image": io.BytesIO(encoded), "label": int(label)}


def prepare(folder, damaged_every: int = 0) -> list[str]:
    """Writes the dataset, and returns the arguments by which `train.py` streams it."""
    builder = StreamedDigits(damaged_every=damaged_every, data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return [
        f"--config.data_dir={folder}",
        "--config.dataset=streamed_digits",
        "--config.model_arguments.in_features=3",
        "--config.mixup=0.4",
    ]
