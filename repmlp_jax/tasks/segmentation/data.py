"""Street scenes with a class for every pixel: CamVid, and Cityscapes as the paper's Section 4.5 has it.

Both are read through TensorFlow Datasets without TensorFlow, undecoded; `scene_examples` decodes.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from repmlp_jax.data.folder import data_folder
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from repmlp_jax.nearest import lookup
from repmlp_jax.tasks.segmentation.metrics import IGNORED


@dataclasses.dataclass(frozen=True)
class StreetScenes:
    """A dataset of street scenes.

    Attributes:
        name: what TFDS calls it.
        image: the feature that holds the picture.
        record: the feature that names the record.
        class_names: what the labels mean.
        palette: colour (red, green, blue) of each class.
        mean: of each channel, images scaled to [0, 1].
        std: standard deviation of each channel.
        classes_of_ids: the class of each id that its pictures of labels hold, 255 for none; None: the id itself.
    """

    name: str
    image: str
    record: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes_of_ids: tuple[int, ...] | None = None

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The class of each of the 256 numbers that a label can be, -1 where it can not be that."""
        table = np.full(256, -1, np.int16)
        classes = self.classes_of_ids or range(len(self.class_names))
        table[: len(classes)] = classes
        table[IGNORED] = IGNORED
        return table

    def classes(self, ids: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """The classes of the ids in a picture of labels, 255 where a pixel does not count.

        Raises:
            ValueError: if there is a number that is no id of this dataset.
        """
        classes = self._table[ids]
        if (classes < 0).any():
            strays = np.unique(ids[classes < 0]).tolist()
            raise ValueError(
                f"{int((classes < 0).sum())} pixels have labels {strays}, and {self.name} has 0 to "
                f"{np.flatnonzero(self._table[:IGNORED] >= 0)[-1]}, and {IGNORED} for what does not count"
            )
        return classes.astype(np.uint8)


_CAMVID = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign_symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}

# Name, id in the pictures of labels, colour: Cityscapes' own table, of the classes that its benchmark counts.
_CITYSCAPES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_CITYSCAPES_IDS = tuple(number for _, number, _ in _CITYSCAPES)

DATASETS = {
    # Mean and deviation over the 367 training images.
    "camvid": StreetScenes(
        "camvid",
        "image",
        "id",
        tuple(_CAMVID),
        tuple(_CAMVID.values()),
        (0.4116, 0.4249, 0.4322),
        (0.3067, 0.3113, 0.3068),
    ),
    "cityscapes": StreetScenes(
        "cityscapes",
        "image_left",
        "image_id",
        tuple(name for name, _, _ in _CITYSCAPES),
        tuple(colour for _, _, colour in _CITYSCAPES),
        IMAGENET_MEAN,
        IMAGENET_STD,
        tuple(_CITYSCAPES_IDS.index(number) if number in _CITYSCAPES_IDS else IGNORED for number in range(34)),
    ),
}


def street_scenes(name: str) -> StreetScenes:
    """The dataset of that name.

    Raises:
        ValueError: if there is none; the message has the nearest name.
    """
    return lookup(DATASETS, name, "dataset of street scenes")


def load_street_scenes(name: str, data_dir: str | Path | None = None) -> dict[str, Sequence[Mapping]]:
    """Opens a dataset of street scenes, prepared by TFDS in a format with random access.

    Args:
        name: "camvid" or "cityscapes".
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.

    Returns:
        The name of each split → its records, undecoded, for `scene_examples`.

    Raises:
        ValueError: if there is no such dataset.
        FileNotFoundError: if it is not prepared in `data_dir`.
        NotImplementedError: if it is prepared there in a format without random access, such as tfrecord.
    """
    import tensorflow_datasets as tfds

    dataset = street_scenes(name)
    data_dir = data_folder(data_dir)
    if not any((data_dir / name).rglob("dataset_info.json")):
        raise FileNotFoundError(
            f"there is no {name} in {data_dir}. Prepare it with TFDS as array_record, from pictures that you are "
            f"entitled to (Cityscapes asks to register), or name another folder by data_dir or TFDS_DATA_DIR"
        )
    features = (dataset.image, "segmentation_label")
    decoders = {feature: tfds.decode.SkipDecoding() for feature in features}
    return dict(tfds.data_source(name, data_dir=data_dir, decoders=decoders, download=False))
