"""Street scenes with a class for every pixel: CamVid, and Cityscapes as in the paper's Section 4.5.

TensorFlow Datasets reads both without TensorFlow, undecoded; `examples.py` decodes them.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from repmlp_jax.data.prepared import check_features, open_prepared
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from repmlp_jax.nearest import lookup
from repmlp_jax.storage.preprocessing import check_preprocessing
from repmlp_jax.tasks.segmentation.metrics import IGNORED


@dataclasses.dataclass(frozen=True)
class StreetScenes:
    """A dataset of street scenes.

    Attributes:
        name: the dataset's name in TFDS.
        image: the feature that holds the picture.
        record: the feature that names the record.
        class_names: name of each class.
        palette: colour (red, green, blue) of each class.
        mean: of each channel of images that are scaled to [0, 1].
        std: standard deviation of each channel.
        classes_of_ids: the class of each id in its label pictures, 255 for none; None: the id itself.

    Raises:
        TypeError: as `check_preprocessing`.
        ValueError: as `check_preprocessing`, or if there is not one colour for each class, or an id has no class.
    """

    name: str
    image: str
    record: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes_of_ids: tuple[int, ...] | None = None

    def __post_init__(self):
        about = dict(mean=self.mean, std=self.std, class_names=self.class_names)
        check_preprocessing(about, channels=3, classes=len(self.palette))
        strays = set(self.classes_of_ids or ()) - {*range(len(self.class_names)), IGNORED}
        if strays:
            raise ValueError(
                f"classes_of_ids of {self.name} holds {sorted(strays)}; classes are 0 to {len(self.class_names) - 1}, "
                f"and {IGNORED} is what does not count"
            )

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The class of each of the 256 possible ids, -1 for an id that the dataset does not have."""
        table = np.full(256, -1, np.int16)
        classes = self.classes_of_ids or range(len(self.class_names))
        table[: len(classes)] = classes
        table[IGNORED] = IGNORED
        return table

    def classes(self, ids: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
        """Maps the ids of a label picture to classes, 255 for a pixel that does not count.

        Raises:
            ValueError: if there is an id that the dataset does not have.
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

# Name, id in the label pictures, colour: the classes of Cityscapes' benchmark, from its own table.
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
    """Looks up a dataset by its name.

    Raises:
        ValueError: if there is no such dataset; the message names the nearest.
    """
    return lookup(DATASETS, name, "dataset of street scenes")


def load_street_scenes(name: str, data_dir: str | Path | None = None) -> dict[str, Sequence[Mapping]]:
    """Opens a dataset of street scenes that TFDS prepared in a format with random access.

    Args:
        name: "camvid" or "cityscapes".
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.

    Returns:
        Split → its undecoded records, for `evaluation_example` and `training_example`.

    Raises:
        ValueError: if there is no such dataset, it lacks a feature, or as `open_prepared`.
        FileNotFoundError: as `open_prepared`.
    """
    dataset = street_scenes(name)
    pictures = dataset.image, "segmentation_label"
    info, splits = open_prepared(name, data_dir, undecoded=pictures)
    check_features(name, info, (*pictures, dataset.record))
    return dict(splits)
