"""Faces: the real ones where they are, and small datasets of our own for what can go wrong."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tolerance import ROUNDING_F64, assert_close

from repmlp_jax.data.stream import BadExample
from repmlp_jax.tasks.faces import data
from repmlp_jax.tasks.faces.data import centred_pixels, load_faces, load_test_faces, pixels
from repmlp_jax.tasks.faces.stream import face_example, stream_faces
from repmlp_jax.tasks.faces.verification import cosine_similarities, verification_report


class Source(list):
    """A split as TFDS gives it."""

    def __getitems__(self, places):
        return [self[place] for place in places]


def example(label, shape=(8, 6, 1), value=100):
    return {"image": np.full(shape, value, np.uint8), "label": np.int64(label)}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Makes a dataset of these splits look as if it were prepared in a folder."""

    def prepare(**splits):
        sources = {split: Source(examples) for split, examples in splits.items()}
        features = next(record for source in sources.values() for record in source)
        monkeypatch.setattr(data, "open_prepared", lambda name, data_dir: (SimpleNamespace(features=features), sources))
        return tmp_path

    return prepare


def test_orl_is_read_with_thirty_people_to_train_on_and_ten_others(shared_datasets):
    if not (shared_datasets / "orl_faces").is_dir():
        pytest.skip(f"needs orl_faces in {shared_datasets}")
    faces = load_faces("orl_faces", shared_datasets, image_size=(48, 40))
    assert faces.train[0].shape == (300, 48, 40, 1)
    assert faces.test[0].shape == (100, 48, 40, 1)
    assert faces.train[0].dtype == faces.test[0].dtype == np.uint8
    assert faces.train[1].dtype == faces.test[1].dtype == np.int32
    assert np.bincount(faces.train[1]).tolist() == [10] * 30
    assert np.unique(faces.test[1], return_counts=True)[0].tolist() == list(range(30, 40))
    assert faces.people == tuple(range(30))
    scaled = faces.train[0] / 255
    assert_close((faces.mean[0], faces.std[0]), (scaled.mean(), scaled.std()), ROUNDING_F64)
    source = tfds.data_source("orl_faces", data_dir=shared_datasets, split="test")
    expected = cv2.resize(source[0]["image"], (40, 48), interpolation=cv2.INTER_AREA)
    assert (faces.test[0][0, :, :, 0] == expected).all()
    whole = load_faces("orl_faces:1.0.0", shared_datasets, image_size=(112, 92))
    assert (whole.test[0][0] == source[0]["image"]).all()


def test_pixels_tell_orls_people_apart_better_than_chance_and_not_well(shared_datasets):
    if not (shared_datasets / "orl_faces").is_dir():
        pytest.skip(f"needs orl_faces in {shared_datasets}")
    images, labels = load_faces("orl_faces", shared_datasets).test
    for baseline in (pixels, centred_pixels):
        report = verification_report(baseline(images), labels)
        assert (report["same_pairs"], report["different_pairs"]) == (450, 4500)
        assert 0.88 < report["auc"] < 0.94
        assert 0.4 < report["tar_at_far_1e-2"] < 0.7
        assert report["rank_1"] > 0.95


def test_class_numbers_have_no_gap_and_a_map_back(prepared):
    labels, values = (9, 2, 9, 5), (0, 200, 200, 0)
    train = [example(label, value=value) for label, value in zip(labels, values, strict=True)]
    folder = prepared(train=train, test=[example(7), example(3)])
    faces = load_faces("people", folder, image_size=(4, 3))
    assert faces.people == (2, 5, 9)
    assert faces.train[1].tolist() == [2, 0, 2, 1]
    assert [faces.people[number] for number in faces.train[1]] == [9, 2, 9, 5]
    assert faces.test[1].tolist() == [7, 3]
    assert (faces.mean, faces.std) == (pytest.approx((100 / 255,)), pytest.approx((100 / 255,)))


def test_images_of_any_size_and_both_kinds_of_colour_come_to_one_size(prepared):
    sizes = [(8, 6, 3), (3, 2, 3), (3, 9, 3), (4, 4, 3)]
    folder = prepared(train=[example(0, size, 10 * size[0]) for size in sizes], test=[example(1, (5, 5, 3))])
    faces = load_faces("people", folder, image_size=(4, 4))
    assert faces.train[0].shape == (4, 4, 4, 3)
    assert (faces.train[0] == np.array([80, 30, 30, 40])[:, None, None, None]).all()


def test_shrinking_averages_what_falls_into_a_pixel(prepared):
    image = np.array([[0, 100, 10, 30], [200, 100, 20, 40]], np.uint8)[..., None]
    folder = prepared(train=[{"image": image, "label": 0}], test=[example(1)])
    assert load_faces("people", folder, image_size=(1, 2)).train[0].ravel().tolist() == [100, 25]


def test_somebody_who_was_trained_on_is_not_tested(prepared):
    folder = prepared(train=[example(0), example(1), example(2)], test=[example(2), example(3), example(1)])
    with pytest.raises(ValueError, match=r"2 of the 3 people of people's test split.*labels 1, 2"):
        load_faces("people", folder)


def test_what_a_dataset_lacks_is_named(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"orl_faces is not prepared in .*, nor is any other.*TFDS_DATA_DIR"):
        load_faces("orl_faces", tmp_path)
    folder = prepared(train=[example(0)])
    with pytest.raises(ValueError, match="people has no split 'test'; it has 'train'"):
        load_faces("people", folder)


def test_of_a_streamed_datasets_tests_only_the_test_split_is_read(prepared):
    folder = prepared(test=[example(7), example(3)])
    images, labels = load_test_faces("people", folder, image_size=(4, 3))
    assert images.shape == (2, 4, 3, 1)
    assert labels.tolist() == [7, 3]
    folder = prepared(train=[example(0)])
    with pytest.raises(ValueError, match="untested has no split 'test'; it has 'train'"):
        load_test_faces("untested", folder)


def test_streamed_faces_are_those_that_are_loaded(shared_datasets):
    if not (shared_datasets / "orl_faces").is_dir():
        pytest.skip(f"needs orl_faces in {shared_datasets}")
    options = dict(batch_size=300, workers=0)
    open_stream, examples = stream_faces("orl_faces", shared_datasets, (24, 20), 30, **options)
    assert examples == 300
    with open_stream(0, 0) as stream:
        batch = next(stream)
    images, labels = load_faces("orl_faces", shared_datasets, (24, 20)).train
    assert sorted(
        (label, image.tobytes()) for label, image in zip(batch["label"], batch["image"], strict=True)
    ) == sorted((label, image.tobytes()) for label, image in zip(labels, images, strict=True))
    assert (batch["label"] != labels).any()
    with open_stream(0, 1) as following, pytest.raises(AssertionError):
        np.testing.assert_array_equal(next(following)["label"], batch["label"])


def test_a_streamed_face_that_cannot_be_read_or_has_no_class_is_named():
    options = dict(name="people", image_size=(4, 4), channels=1, num_people=3)
    random = np.random.default_rng(0)
    with pytest.raises(BadExample, match=r"a picture of people \(label 2\) cannot be decoded"):
        face_example({"image": b"no picture", "label": 2}, random, **options)
    image = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    with pytest.raises(ValueError, match="num_people=3 does not fit people: the label is 3, and classes are"):
        face_example({"image": image, "label": 3}, random, **options)
    with pytest.raises(ValueError, match="num_people=3 does not fit people: the label must be one integer, not float"):
        face_example({"image": image, "label": 1.0}, random, **options)


def test_a_dataset_without_labels_or_with_mixed_colours_is_refused(prepared):
    folder = prepared(train=[{"image": np.zeros((2, 2, 1), np.uint8)}], test=[])
    with pytest.raises(ValueError, match="unlabelled has no feature 'label'; it has 'image'"):
        load_faces("unlabelled", folder)
    folder = prepared(train=[example(0), example(1, (2, 2, 3))], test=[])
    with pytest.raises(ValueError, match=r"2 images of a split of mixed have \[1, 3\] channels"):
        load_faces("mixed", folder)
    folder = prepared(train=[example(0)], test=[])
    with pytest.raises(ValueError, match=r"0 images of a split of empty have \[\] channels"):
        load_faces("empty", folder)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=f"people is not prepared in {tmp_path / 'elsewhere'}"):
        load_faces("people")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([example(-1), example(0)], r"the people train labels go from -1 to 0, .*: 1 of 2 labels are not classes"),
        ([example(2**31), example(0)], r"labels go from 0 to 2147483648, .*: 1 of 2 labels are not classes"),
        ([example(0) | {"label": 0.5}], r"labels must be integers \(N,\), not float64 \(1,\)"),
        ([example(0) | {"image": np.zeros((4, 4, 1), np.uint16)}], r"images must be uint8 \(N, H, W, C\), not uint16"),
        ([example(0), example(2)], r"std is \[0.0\]: a channel without deviation"),
    ],
)
def test_images_and_labels_that_cannot_be_trained_on_are_refused(prepared, train, message):
    with pytest.raises(ValueError, match=message):
        load_faces("people", prepared(train=train, test=[example(7)]))


def test_centred_pixels_see_neither_brightness_nor_contrast():
    image = np.random.default_rng(0).integers(0, 100, (1, 4, 3, 1), np.uint8)
    images = np.concatenate([image, image + 50, image * 2])
    assert_close(cosine_similarities(centred_pixels(images)), np.ones((3, 3)), ROUNDING_F64)
    assert cosine_similarities(pixels(images))[0, 1] < 1 - 1e-3
    assert pixels(images).shape == centred_pixels(images).shape == (3, 12)
