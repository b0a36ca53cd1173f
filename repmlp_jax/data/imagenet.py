"""ImageNet and similar TFDS datasets: encoded pictures with one label each, read without TensorFlow.

images = load_imagenet(data_dir)
transform = functools.partial(training_example, size=(224, 224), policy=POLICIES["randaugment"])
batches = make_stream(images.train, transform, batch_size=256, seed=0, workers=16)

Batches are uint8; `augment.normalise` converts them on the device to the input of a model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from repmlp_jax.data.decoding import decode, random_flip, random_resized_crop
from repmlp_jax.data.folder import data_folder
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, resize_and_crop
from repmlp_jax.data.stream import Source
from repmlp_jax.nearest import nearest

HOW_TO_PREPARE = """\
TFDS does not download it: register at https://image-net.org/download-images, put ILSVRC2012_img_train.tar and \
ILSVRC2012_img_val.tar into {data_dir}/downloads/manual, and run, where TensorFlow is installed, \
`tfds build imagenet2012 --file_format=array_record --data_dir={data_dir}`"""


class EncodedImages(NamedTuple):
    """Pictures that are decoded on access.

    Attributes:
        train: examples with "image", the encoded picture in bytes, and "label", an int from 0.
        validation: other examples in the same format.
        num_classes: number of classes.
        class_names: name of each label; for ImageNet WordNet's numbers, such as "n01440764".
        mean: of each channel of images scaled to [0, 1]; ImageNet's, for every dataset.
        std: standard deviation of each channel; ImageNet's, for every dataset.
    """

    train: Source
    validation: Source
    num_classes: int
    class_names: Sequence[str]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


def load_imagenet(data_dir: str | Path | None = None, name: str = "imagenet2012") -> EncodedImages:
    """Opens a prepared TFDS dataset; it reads only the description.

    Args:
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or `~/tensorflow_datasets`.
        name: a dataset with the features "image" and "label" and the splits "train" and "validation" (or "test" if
            there is no "validation"); a version, as in "imagenet2012:5.1.0", is optional.

    Raises:
        FileNotFoundError: if the dataset is not prepared there; the message says how to prepare ImageNet.
        ValueError: if it is prepared without random access, lacks a feature, a split or class labels, or its
            description cannot be read.
    """
    import tensorflow_datasets as tfds

    data_dir = data_folder(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        raise FileNotFoundError(_not_prepared(name, data_dir)) from None
    except Exception as error:  # a damaged description raises any kind of error
        raise ValueError(f"{name} in {data_dir} cannot be opened: {error}") from error
    if not builder.is_prepared():
        raise FileNotFoundError(_not_prepared(name, data_dir))
    info = builder.info
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{builder.data_dir} is prepared as {info.file_format.value}, which cannot be read in any order; "
            f"prepare it again with file_format='array_record'"
        )
    if missing := {"image", "label"} - set(info.features):
        raise ValueError(f"{name} has no feature {min(missing)!r}; it has {', '.join(map(repr, info.features))}")
    if not isinstance(info.features["label"], tfds.features.ClassLabel):
        raise ValueError(f"the labels of {name} are {info.features['label']}, not one class an image")
    held_out = "validation" if "validation" in info.splits else "test"
    if missing := {"train", held_out} - set(info.splits):
        raise ValueError(f"{name} has no split {min(missing)!r}; it has {', '.join(map(repr, info.splits))}")
    train, validation = (
        builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}) for split in ("train", held_out)
    )
    label = info.features["label"]
    return EncodedImages(train, validation, label.num_classes, tuple(label.names))


def training_example(
    example: dict,
    random: np.random.Generator,
    *,
    size: tuple[int, int],
    policy: Callable[[UInt8[np.ndarray, "H W 3"], np.random.Generator], UInt8[np.ndarray, "H W 3"]] | None = None,
) -> dict[str, np.ndarray | np.int32]:
    """Decodes a picture, crops and resizes it at random, mirrors half of the pictures, and applies a policy.

    The EXIF orientation is ignored, as in `evaluation_example`.

    Args:
        example: of `EncodedImages.train`.
        random: source of the random numbers.
        size: (height, width) in pixels.
        policy: one of `policies.POLICIES`; None: no distortion.

    Returns:
        "image" uint8 (height, width, 3) in RGB and "label" int32 ().

    Raises:
        BadExample: if the picture cannot be decoded.
    """
    image = random_flip(random_resized_crop(decode(example["image"]), size, random), random)
    if policy is not None:
        image = policy(image, random)
    return {"image": image, "label": np.int32(example["label"])}


def evaluation_example(example: dict, *, size: tuple[int, int]) -> dict[str, np.ndarray | np.int32]:
    """Decodes a picture and applies `resize_and_crop`: a size of 224 crops a shorter side of 256 pixels.

    The EXIF orientation is ignored, since published results on ImageNet ignore it.

    Args:
        example: of `EncodedImages.validation`.
        size: (height, width) in pixels.

    Returns:
        "image" uint8 (height, width, 3) in RGB and "label" int32 ().

    Raises:
        BadExample: if the picture cannot be decoded.
    """
    return {"image": resize_and_crop(decode(example["image"]), *size), "label": np.int32(example["label"])}


def _not_prepared(name: str, data_dir: Path) -> str:
    what = f"{name} is not prepared in {data_dir}"
    if name.partition(":")[0] == "imagenet2012":
        return f"{what}. {HOW_TO_PREPARE.format(data_dir=data_dir)}"
    there = sorted({path.parents[1].name for path in data_dir.glob("*/*/dataset_info.json")})
    return f"{what}; the nearest there is {nearest(name, there)!r}" if there else f"{what}, nor is any other dataset"
