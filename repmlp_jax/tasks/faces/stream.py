"""Faces that do not fit in memory, such as MS1M-V2's 5.8 million, streamed from a TFDS dataset."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from repmlp_jax.data.decoding import decode
from repmlp_jax.data.folder import data_folder
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
    """
    import tensorflow_datasets as tfds

    data_dir = data_folder(data_dir)
    source = tfds.data_source(
        name, split="train", data_dir=data_dir, download=False, decoders={"image": tfds.decode.SkipDecoding()}
    )
    channels = tfds.builder(name, data_dir=data_dir).info.features["image"].shape[-1]
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
    if not 0 <= record["label"] < num_people:
        raise ValueError(
            f"{name} has the label {record['label']}, and num_people={num_people} allows 0 to {num_people - 1}"
        )
    image = resize(image, image_size)
    return dict(image=image, label=np.int32(record["label"]))
