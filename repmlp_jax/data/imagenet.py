"""ImageNet and similar TFDS datasets: encoded pictures with one label each, read without TensorFlow.

images = load_imagenet(data_dir)
transform = functools.partial(training_example, size=(224, 224), num_classes=1000, policy=POLICIES["randaugment"])
batches = make_stream(images.train, transform, batch_size=256, seed=0, workers=16)

Batches are uint8; `augment.normalise` converts them on the device to the input of a model.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from repmlp_jax.data.checks import check_label
from repmlp_jax.data.decoding import decode, random_flip, random_resized_crop
from repmlp_jax.data.prepared import check_features, check_splits, open_prepared
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, resize_and_crop
from repmlp_jax.data.stream import BadExample, Source
from repmlp_jax.storage.preprocessing import check_preprocessing

# Of grey images: the means of ImageNet's three channels.
GREY_MEAN = (0.449,)
GREY_STD = (0.226,)


@dataclasses.dataclass(frozen=True)
class EncodedImages:
    """Pictures that are decoded on access; what is said of them is checked when it is made.

    Attributes:
        train: examples with "image", the encoded picture in bytes, and "label", an int from 0.
        validation: other examples in the same format.
        num_classes: number of classes.
        class_names: name of each label; for ImageNet WordNet's numbers, such as "n01440764". Empty if the dataset has
            none.
        mean: of each channel of images scaled to [0, 1]; ImageNet's, for every dataset.
        std: standard deviation of each channel; ImageNet's, for every dataset.
        channels: that pictures are decoded to, 3 (RGB) or 1 (grey).

    Raises:
        TypeError: if a mean or deviation is not a list of numbers, or the names are not a list of strings.
        ValueError: if there is not one name for each class, or not one mean and one deviation within [0, 1] for each
            channel.
    """

    train: Source
    validation: Source
    num_classes: int
    class_names: Sequence[str]
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    channels: int = 3

    def __post_init__(self):
        about = dict(mean=self.mean, std=self.std, class_names=self.class_names)
        check_preprocessing(about, channels=self.channels, classes=self.num_classes)


def load_imagenet(data_dir: str | Path | None = None, name: str = "imagenet2012", channels: int = 3) -> EncodedImages:
    """Opens a prepared TFDS dataset; it reads only the description.

    Args:
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or `~/tensorflow_datasets`.
        name: a dataset with the features "image" and "label" and the splits "train" and "validation" (or "test" if
            there is no "validation"); a version, as in "imagenet2012:5.1.0", is optional.
        channels: that pictures are decoded to: 3, of which a grey picture gets three that are equal, or 1 for a dataset
            of grey pictures, such as MNIST.

    Raises:
        TypeError: if `name` is not a string.
        FileNotFoundError: if the dataset or a file of it is not there; the message says how to prepare it.
        ValueError: if a file is damaged, the dataset is prepared without random access, or lacks a feature, a split or
            class labels, or its pictures do not have that many channels.
    """
    import tensorflow_datasets as tfds

    info, splits = open_prepared(name, data_dir, undecoded=("image",))
    check_features(name, info, ("image", "label"))
    label = info.features["label"]
    if not isinstance(label, tfds.features.ClassLabel):
        raise ValueError(f"the labels of {name} are {label}, not one class an image")
    _check_channels(name, info.features["image"], channels)
    held_out = "validation" if "validation" in splits else "test"
    check_splits(name, splits, ("train", held_out))
    # TFDS makes names up, "0", "1" and so on, for a dataset that has none.
    is_named = label.get_names_filepath(info.data_dir, "label").exists()
    mean, std = (GREY_MEAN, GREY_STD) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    names = tuple(label.names) if is_named else ()
    return EncodedImages(splits["train"], splits[held_out], label.num_classes, names, mean, std, channels)


def training_example(
    example: dict,
    random: np.random.Generator,
    *,
    size: tuple[int, int],
    num_classes: int | None = None,
    channels: int = 3,
    policy: Callable[[UInt8[np.ndarray, "H W 3"], np.random.Generator], UInt8[np.ndarray, "H W 3"]] | None = None,
    mirrored: bool = True,
) -> dict[str, np.ndarray | np.int32]:
    """Decodes a picture, crops and resizes it at random, mirrors it or not, and applies a policy.

    The EXIF orientation is ignored, as in `evaluation_example`.

    Args:
        example: of `EncodedImages.train`.
        random: source of the random numbers.
        size: (height, width) in pixels.
        num_classes: number of classes that labels are checked against; None: any number.
        channels: 3 for RGB, 1 for grey.
        policy: one of `policies.POLICIES`, for RGB; None: no distortion.
        mirrored: mirror half of the pictures.

    Returns:
        "image" uint8 (height, width, channels) and "label" int32 ().

    Raises:
        BadExample: if the picture cannot be decoded.
        ValueError: if the label is not an integer from 0 to `num_classes` − 1.
    """
    image = random_resized_crop(_decoded(example, channels), size, random)
    if mirrored:
        image = random_flip(image, random)
    if policy is not None:
        image = policy(image, random)
    return {"image": image, "label": check_label(example["label"], num_classes)}


def evaluation_example(
    example: dict, *, size: tuple[int, int], num_classes: int | None = None, channels: int = 3
) -> dict[str, np.ndarray | np.int32]:
    """Decodes a picture and applies `resize_and_crop`: a size of 224 crops a shorter side of 256 pixels.

    The EXIF orientation is ignored, since published results on ImageNet ignore it.

    Args:
        example: of `EncodedImages.validation`.
        size: (height, width) in pixels.
        num_classes: number of classes that labels are checked against; None: any number.
        channels: 3 for RGB, 1 for grey.

    Returns:
        "image" uint8 (height, width, channels) and "label" int32 ().

    Raises:
        BadExample: if the picture cannot be decoded.
        ValueError: if the label is not an integer from 0 to `num_classes` − 1.
    """
    image = resize_and_crop(_decoded(example, channels), *size)
    return {"image": image, "label": check_label(example["label"], num_classes)}


def _decoded(example, channels):
    """The picture of an example; the error of one that is read from a file names it."""
    try:
        return decode(example["image"], channels)
    except BadExample as error:
        if "path" not in example:
            raise
        raise BadExample(f"{example['path']}: {error}") from error


def _check_channels(name, image, channels):
    """Refuses pictures that would lose their colours, their transparency or half of their bits."""
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: {name} is decoded to 3 channels (RGB), or 1 (grey)")
    *_, has = image.shape or (None,)
    if np.dtype(image.np_dtype) != np.uint8 or has not in (None, 1, 3):
        raise ValueError(f"{name} holds pictures {image.np_dtype} {image.shape}, not uint8 of 1 or 3 channels")
    if channels == 1 and has != 1:
        raise ValueError(f"{name} holds pictures in colour, and not of 1 channel: set model_arguments.in_features=3")
