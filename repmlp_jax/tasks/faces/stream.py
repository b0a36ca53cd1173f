"""Faces that do not fit in memory, such as MS1M-V2's 5.8 million, streamed from a TFDS dataset."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from repmlp_jax.data.checks import check_label
from repmlp_jax.data.decoding import decode
from repmlp_jax.data.prepared import check_features, check_splits, open_prepared
from repmlp_jax.data.preprocessing import resize
from repmlp_jax.data.stream import BadExample, Stream, make_stream


def stream_faces(
    name: str, data_dir: str | Path | None, image_size: tuple[int, int], num_people: int, **options
) -> tuple[Callable[[int, int], Stream], int]:
    """Opens the training split of a dataset of faces with features "image" and "label".

    Args:
        name: the dataset's name in TFDS.
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.
        image_size: (height, width) that images are resized to, in pixels.
        num_people: number of classes; labels are class numbers from 0.
        options: `batch_size`, `workers`, `process_index` and `process_count` of `make_stream`.

    Returns:
        `(seed, step) → stream` of batches, starting at that step, and the number of examples.

    Raises:
        FileNotFoundError: as `open_prepared`.
        ValueError: as `open_prepared`, or if it lacks the split or a feature.
    """
    info, splits = open_prepared(name, data_dir, undecoded=("image",))
    check_features(name, info, ("image", "label"))
    check_splits(name, splits, ("train",))
    source = splits["train"]
    channels = info.features["image"].shape[-1]
    prepare = functools.partial(
        face_example, name=name, image_size=image_size, channels=channels, num_people=num_people
    )

    def open_stream(seed, step):
        return make_stream(source, prepare, seed=seed, start=step, **options)

    return open_stream, len(source)


def face_example(
    record: Mapping,
    random: np.random.Generator,
    *,
    name: str,
    image_size: tuple[int, int],
    channels: int,
    num_people: int,
) -> dict[str, np.ndarray | np.int32]:
    """Decodes and resizes a record; augmentation runs on the device.

    Raises:
        BadExample: if the picture cannot be decoded.
        ValueError: if the label is not a class number.
    """
    try:
        image = decode(record["image"], channels)
    except BadExample as error:
        raise BadExample(f"a picture of {name} (label {record['label']}) cannot be decoded: {error}") from None
    try:
        label = check_label(record["label"], num_people)
    except ValueError as error:
        raise ValueError(f"num_people={num_people} does not fit {name}: {error}") from None
    return dict(image=resize(image, image_size), label=label)
