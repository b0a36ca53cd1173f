"""From a record of a street scene to an example: decoded and, to train on, scaled, cropped and mirrored at random.

Pure functions of the record and, in training, of a random generator; they run on the host.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from repmlp_jax.data.stream import BadExample
from repmlp_jax.tasks.segmentation.data import StreetScenes
from repmlp_jax.tasks.segmentation.metrics import IGNORED


def evaluation_example(example: Mapping, *, dataset: StreetScenes) -> dict[str, np.ndarray]:
    """Decodes a record.

    Args:
        example: of `load_street_scenes`.
        dataset: which one it is of.

    Returns:
        `image`: uint8 (H, W, 3) in RGB; `label`: uint8 (H, W), a class or 255 for what does not count.

    Raises:
        BadExample: if a picture is corrupt or their sizes differ; the message names the record.
        ValueError: if a label is none of the dataset's; the message names the record.
    """
    image: Any = _decode(example[dataset.image], cv2.IMREAD_COLOR_RGB)
    ids: Any = _decode(example["segmentation_label"], cv2.IMREAD_UNCHANGED)
    for what, picture, dimensions in (("picture", image, 3), ("labels", ids, 2)):
        if picture is None:
            raise BadExample(f"{_record(example, dataset)}: its {what} cannot be decoded")
        if picture.ndim != dimensions or picture.dtype != np.uint8:
            raise BadExample(
                f"{_record(example, dataset)}: its {what} are {picture.dtype} of shape {picture.shape}, "
                f"which should be uint8 with {dimensions} axes"
            )
    if image.shape[:2] != ids.shape:
        raise BadExample(
            f"{_record(example, dataset)}: its picture has {image.shape[:2]} pixels, its labels {ids.shape}"
        )
    try:
        label = dataset.classes(ids)
    except ValueError as error:
        raise ValueError(f"{_record(example, dataset)}: {error}") from None
    return dict(image=image, label=label)


def training_example(
    example: Mapping,
    random: np.random.Generator,
    *,
    dataset: StreetScenes,
    crop_size: tuple[int, int],
    scale: tuple[float, float] = (0.5, 2.0),
    brightness: float = 0.2,
) -> dict[str, np.ndarray]:
    """Decodes a record and makes a training example of it: scaled, cropped, mirrored, brighter or darker at random.

    A picture that is smaller than the crop once it is scaled is padded equally on all sides, with the dataset's mean
    colour and with labels that do not count. A crop may have no pixel that counts, rarely.

    Args:
        example: of `load_street_scenes`.
        random: what is drawn from.
        dataset: which one the record is of.
        crop_size: (height, width) of the result.
        scale: least and greatest factor of the size; its logarithm is drawn evenly, so that halving is as likely as
            doubling.
        brightness: greatest share by which a picture is made brighter or darker.

    Returns:
        `image`: uint8 (*crop_size, 3) in RGB; `label`: uint8 crop_size, a class or 255 for what does not count.

    Raises:
        BadExample: as `evaluation_example`, and if no pixel of the record counts.
        ValueError: as `evaluation_example`.
    """
    scene = evaluation_example(example, dataset=dataset)
    image, label = scene["image"], scene["label"]
    if (label == IGNORED).all():
        raise BadExample(f"{_record(example, dataset)}: none of its {label.size} pixels counts")
    image, label = _scaled(image, label, np.exp(random.uniform(*np.log(scale))))
    image = _padded(image, crop_size, [round(255 * value) for value in dataset.mean])
    label = _padded(label, crop_size, [IGNORED])
    top, left = (
        random.integers(whole - part, endpoint=True) for whole, part in zip(label.shape, crop_size, strict=True)
    )
    cut = slice(top, top + crop_size[0]), slice(left, left + crop_size[1])
    image, label = image[cut], label[cut]
    if random.random() < 0.5:
        image, label = image[:, ::-1], label[:, ::-1]
    factor = 1 + random.uniform(-brightness, brightness)
    image = np.clip(np.rint(image * np.float32(factor)), 0, 255).astype(np.uint8)
    return dict(image=image, label=np.ascontiguousarray(label))


def _record(example, dataset) -> str:
    name = example[dataset.record]
    return f"record {name.decode() if isinstance(name, bytes) else name} of {dataset.name}"


def _decode(content: bytes, mode: int) -> np.ndarray | None:
    """The picture, or None where it is corrupt."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), mode)
    except cv2.error:
        return None


def _scaled(image, label, factor):
    size = tuple(max(1, round(side * factor)) for side in label.shape[::-1])
    # The exact nearest neighbour, unlike OpenCV's other one, puts labels where the bilinear image has its pixels.
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _padded(picture, size, colour):
    missing = [max(0, part - whole) for whole, part in zip(picture.shape[:2], size, strict=True)]
    (top, left), (bottom, right) = zip(*((count // 2, count - count // 2) for count in missing), strict=True)
    return cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour)
