"""A small dataset with ImageNet's own features, written and read without TensorFlow."""

import functools
import io
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from repmlp_jax.data import open_dataset
from repmlp_jax.data.decoding import decode
from repmlp_jax.data.imagenet import EncodedImages, evaluation_example, load_imagenet, training_example
from repmlp_jax.data.policies import POLICIES
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from repmlp_jax.data.stream import evaluation_stream, make_stream

TRAIN, VALIDATION = 120, 30


class Imagenet2012(tfds.builder_cls("imagenet2012"), skip_registration=True):
    """TFDS's `imagenet2012` with other, few and small pictures."""

    url_infos = None
    pkg_dir_path = Path(__file__).parent

    def __init__(self, *, pictures, **kwargs):
        self.pictures = pictures
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager):
        return {"train": self._examples("train", TRAIN), "validation": self._examples("validation", VALIDATION)}

    def _examples(self, split, count):
        for index, (jpeg, label) in enumerate(self.pictures[split][:count]):
            name = f"{split}_{index}.JPEG"
            yield name, {"image": io.BytesIO(jpeg), "label": label, "file_name": name}


def picture(index):
    """A picture of ImageNet's kind, of a size of its own, and a label."""
    random = np.random.default_rng(index)
    height, width = random.integers(40, 120, 2)
    coarse = random.integers(0, 256, (4, 5, 3), np.uint8)
    image = cv2.resize(coarse, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", image)[1].tobytes(), int(random.integers(1000))


@pytest.fixture(scope="module")
def pictures():
    return {"train": [*map(picture, range(TRAIN))], "validation": [*map(picture, range(1000, 1000 + VALIDATION))]}


@pytest.fixture(scope="module")
def data_dir(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow_datasets")
    builder = Imagenet2012(pictures=pictures, data_dir=folder, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return folder


def test_every_picture_comes_back_encoded_with_its_label(data_dir, pictures):
    images = load_imagenet(data_dir)
    assert images.num_classes == 1000
    assert images.class_names[:2] == ("n01440764", "n01443537")
    assert (images.mean, images.std) == (IMAGENET_MEAN, IMAGENET_STD)
    for source, expected in ((images.train, pictures["train"]), (images.validation, pictures["validation"])):
        assert len(source) == len(expected)
        found = sorted((source[index]["image"], source[index]["label"]) for index in range(len(source)))
        assert found == sorted(expected)


def test_the_folder_may_come_from_the_environment(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(load_imagenet().train) == TRAIN


def test_training_examples_have_the_size_and_the_label(data_dir):
    example = load_imagenet(data_dir).train[0]
    for policy in (None, *POLICIES.values()):
        one, again, other = (
            training_example(example, np.random.default_rng(seed), size=(48, 32), policy=policy) for seed in (0, 0, 1)
        )
        assert one["image"].shape == (48, 32, 3)
        assert one["image"].dtype == np.uint8
        assert one["image"].flags.c_contiguous
        assert one["label"] == example["label"]
        assert one["label"].dtype == np.int32
        np.testing.assert_array_equal(one["image"], again["image"])
        assert (one["image"] != other["image"]).any()


def test_evaluation_examples_show_the_centre(data_dir):
    example = load_imagenet(data_dir).validation[0]
    evaluated = evaluation_example(example, size=(32, 32))
    assert evaluated["label"] == example["label"]
    whole = decode(example["image"])
    side = 0.875 * min(whole.shape[:2])
    top, left = (round((length - side) / 2) for length in whole.shape[:2])
    centre = cv2.resize(
        whole[top : top + round(side), left : left + round(side)], (32, 32), interpolation=cv2.INTER_AREA
    )
    # The same but for the whole pixel that each way of cutting rounds to.
    assert np.abs(evaluated["image"].astype(int) - centre).mean() < 6


def test_training_and_evaluation_stream_from_it(data_dir):
    images = load_imagenet(data_dir)
    transform = functools.partial(training_example, size=(24, 24), policy=POLICIES["randaugment"])
    with make_stream(images.train, transform, batch_size=40, seed=0) as stream:
        batches = [next(stream) for _ in range(3)]
    assert all(batch["image"].shape == (40, 24, 24, 3) and not batch["skipped"].any() for batch in batches)
    labels = np.concatenate([batch["label"] for batch in batches])
    assert sorted(labels) == sorted(images.train[index]["label"] for index in range(TRAIN))

    transform = functools.partial(evaluation_example, size=(24, 24))
    with evaluation_stream(images.validation, transform, batch_size=16) as stream:
        labels = np.concatenate([batch["label"][batch["mask"]] for batch in stream])
    assert labels.tolist() == [images.validation[index]["label"] for index in range(VALIDATION)]


@pytest.mark.slow
def test_worker_processes_read_the_same(data_dir):
    images = load_imagenet(data_dir)
    transform = functools.partial(training_example, size=(64, 64), policy=POLICIES["autoaugment"])
    batches = []
    for workers in (0, 2):
        with make_stream(images.train, transform, batch_size=40, seed=0, workers=workers) as stream:
            batches.append([next(stream) for _ in range(4)])
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_a_picture_cut_short_is_skipped_and_counted(data_dir, pictures):
    source = [dict(image=image, label=label) for image, label in pictures["train"]]
    source[7]["image"] = source[7]["image"][:500]
    transform = functools.partial(training_example, size=(24, 24))
    with make_stream(source, transform, batch_size=TRAIN, seed=0) as stream:
        batch = next(stream)
    assert batch["skipped"].sum() == 1
    labels = sorted([example["label"] for example in source[:7] + source[8:]] + [source[8]["label"]])
    assert sorted(batch["label"]) == labels


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (-1, "the label is -1, and classes are numbered 0 to 999"),
        (1000, "the label is 1000, and classes are numbered 0 to 999"),
        (2.5, r"the label must be one integer, not float64 \(\)"),
        (np.eye(3, dtype=int)[1], r"the label must be one integer, not int64 \(3,\)"),
    ],
)
def test_a_label_that_is_no_class_ends_a_stream_that_names_the_example(pictures, label, message):
    source = [dict(image=image, label=label) for image, label in pictures["train"][:6]]
    source[4]["label"] = label
    options = dict(size=(8, 8), num_classes=1000)
    train, evaluate = (functools.partial(example, **options) for example in (training_example, evaluation_example))
    for stream in (make_stream(source, train, batch_size=6, seed=0), evaluation_stream(source, evaluate, batch_size=6)):
        with stream, pytest.raises(ValueError, match=f"example 4: {message}"):
            next(stream)


def test_what_is_said_of_the_pictures_has_to_fit_them():
    with pytest.raises(ValueError, match="class_names has 1 names, and there are 2 classes"):
        EncodedImages([], [], 2, ["one"])
    with pytest.raises(ValueError, match="mean has 3 values, and the images have 1 channels"):
        EncodedImages([], [], 2, [], channels=1)


def test_missing_imagenet_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError) as failure:
        load_imagenet(tmp_path)
    message = str(failure.value)
    assert f"imagenet2012 is not prepared in {tmp_path}" in message
    assert "https://image-net.org/download-images" in message
    assert f"{tmp_path}/downloads/manual" in message
    assert "--file_format=array_record" in message


def test_another_missing_dataset_names_the_nearest_there(data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"imagenet_v3 is not prepared in .*; the nearest there is 'imagenet20"):
        load_imagenet(data_dir, "imagenet_v3")
    with pytest.raises(FileNotFoundError, match=r"cifar100 is not prepared in .*`tfds build cifar100 --file_f"):
        open_dataset("cifar100", data_dir)  # which TFDS knows, and which is not a mistyped cifar10
    with pytest.raises(ValueError, match=r"imagenet2012 cannot be loaded at version 9.9.9, only: 5.1.0"):
        load_imagenet(data_dir, "imagenet2012:9.9.9")
    with pytest.raises(FileNotFoundError, match=r"cars is not prepared in .*, nor is any other dataset"):
        load_imagenet(tmp_path, "cars")


def test_a_dataset_that_cannot_be_read_in_any_order_is_refused(data_dir, monkeypatch):
    monkeypatch.setattr(tfds.core.DatasetInfo, "file_format", tfds.core.FileFormat.TFRECORD)
    with pytest.raises(ValueError, match="is prepared as tfrecord, which cannot be read in any order"):
        load_imagenet(data_dir)


def test_any_dataset_of_pictures_with_labels_can_be_read(shared_datasets):
    images = load_imagenet(shared_datasets, "cifar10")
    assert (len(images.train), len(images.validation), images.num_classes) == (50_000, 10_000, 10)
    assert images.class_names[3] == "cat"
    assert training_example(images.train[5], np.random.default_rng(0), size=(32, 32))["image"].shape == (32, 32, 3)


def test_a_dataset_without_labels_is_refused(shared_datasets):
    with pytest.raises(ValueError, match=r"camvid has no feature 'label'; it has .*'segmentation_label'"):
        load_imagenet(shared_datasets, "camvid")


@pytest.mark.slow
def test_tensorflow_is_not_needed(data_dir):
    code = (
        "import sys; from repmlp_jax.data.imagenet import *; load_imagenet(sys.argv[1]).train[0]; "
        "print('tensorflow' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code, data_dir], capture_output=True, text=True, check=True)
    assert printed.stdout == "False\n"
