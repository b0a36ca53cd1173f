"""Examples from records of street scenes: decoded and, for training, scaled, cropped and mirrored at random.

The functions run on the host. They are pure functions of the record and, in training, of a random generator.
"""

from collections.abc import Mapping

import cv2
import numpy as np

from repmlp_jax.data.decoding import decode
from repmlp_jax.data.stream import BadExample
from repmlp_jax.tasks.segmentation.data import StreetScenes
from repmlp_jax.tasks.segmentation.metrics import IGNORED


def evaluation_example(example: Mapping, *, dataset: StreetScenes) -> dict[str, np.ndarray]:
    """Decodes a record.

    Args:
        example: a record of `load_street_scenes`.
        dataset: the dataset of the record.

    Returns:
        `image`: uint8 (H, W, 3) in RGB; `label`: uint8 (H, W), a class, or 255 for a pixel that does not count.

    Raises:
        BadExample: if a picture is corrupt or their sizes differ; the message names the record.
        ValueError: if the dataset does not have a label; the message names the record.
    """
    try:
        image = decode(example[dataset.image])
    except BadExample as error:
        raise BadExample(f"{_record(example, dataset)}: its picture cannot be decoded: {error}") from None
    ids = _decode_labels(example["segmentation_label"])
    if ids is None:
        raise BadExample(f"{_record(example, dataset)}: its labels cannot be decoded")
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise BadExample(
            f"{_record(example, dataset)}: its labels are {ids.dtype} of shape {ids.shape}, which should be uint8 with "
            f"2 axes"
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
    """Decodes a record and scales, crops, mirrors and brightens or darkens it at random.

    A scaled picture that is smaller than the crop is padded equally on all sides, with the dataset's mean colour and
    with labels that do not count. In rare cases no pixel of a crop counts.

    Args:
        example: a record of `load_street_scenes`.
        random: source of the random numbers.
        dataset: the dataset of the record.
        crop_size: (height, width) of the result.
        scale: smallest and largest factor of the size; its logarithm is drawn uniformly, so halving is as likely as
            doubling.
        brightness: largest share by which a picture is brightened or darkened.

    Returns:
        `image`: uint8 (*crop_size, 3) in RGB; `label`: uint8 crop_size, a class, or 255 where no class counts.

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


def _decode_labels(content: bytes) -> np.ndarray | None:
    """A picture's values as they are stored; None if it is corrupt."""
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None


def _scaled(image, label, factor):
    size = tuple(max(1, round(side * factor)) for side in label.shape[::-1])
    # INTER_NEAREST_EXACT, unlike INTER_NEAREST, aligns the labels with the pixels of the bilinear image.
    return (
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
        cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT),
    )


def _padded(picture, size, colour):
    missing = [max(0, part - whole) for whole, part in zip(picture.shape[:2], size, strict=True)]
    (top, left), (bottom, right) = zip(*((count // 2, count - count // 2) for count in missing), strict=True)
    return cv2.copyMakeBorder(picture, top, bottom, left, right, cv2.BORDER_CONSTANT, value=colour)
