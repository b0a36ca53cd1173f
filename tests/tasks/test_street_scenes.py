"""Street scenes: labels stay where the picture has what they name, whatever is drawn, and bad records have a name."""

import dataclasses
import functools

import cv2
import numpy as np
import pytest

from repmlp_jax.data.stream import BadExample, evaluation_stream, make_stream
from repmlp_jax.tasks.segmentation.data import DATASETS, load_street_scenes, street_scenes
from repmlp_jax.tasks.segmentation.examples import evaluation_example, training_example

CAMVID, CITYSCAPES = DATASETS["camvid"], DATASETS["cityscapes"]


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def make_record(label, image=None, dataset=CAMVID):
    """A record whose picture, unless given, shows its labels: the red of a pixel is 20 times its class."""
    if image is None:
        image = np.zeros((*label.shape, 3), np.uint8)
        image[..., 0] = 20 * np.where(label == 255, 12, label)
    return {
        dataset.record: b"scene_7",
        dataset.image: png(image[..., ::-1]),
        "segmentation_label": png(label),
    }


@pytest.fixture(scope="module")
def blocks():
    """Labels of 6×8 blocks of 16×16 pixels each, of classes 0 to 10 and 255."""
    classes = np.random.default_rng(0).choice([*range(11), 255], (6, 8)).astype(np.uint8)
    return np.kron(classes, np.ones((16, 16), np.uint8))


draw = functools.partial(training_example, dataset=CAMVID, crop_size=(48, 80))


def test_a_record_is_decoded_as_it_is(blocks):
    image = np.random.default_rng(1).integers(0, 256, (*blocks.shape, 3), np.uint8)
    example = evaluation_example(make_record(blocks, image), dataset=CAMVID)
    np.testing.assert_array_equal(example["image"], image)
    np.testing.assert_array_equal(example["label"], blocks)


def test_examples_have_the_crops_size_and_follow_from_the_generator(blocks):
    record = make_record(blocks)
    one, again, other = (draw(record, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert {name: (array.shape, array.dtype) for name, array in one.items()} == {
        "image": ((48, 80, 3), np.uint8),
        "label": ((48, 80), np.uint8),
    }
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
        assert (one[name] != other[name]).any()


@pytest.mark.parametrize("seed", range(12))
def test_labels_stay_where_the_picture_shows_them(blocks, seed):
    example = draw(make_record(blocks), np.random.default_rng(seed), brightness=0, scale=(0.5, 2.0))
    image, label = example["image"].astype(int), example["label"].astype(int)
    shown = np.abs(image[..., 0] / 20 - np.where(label == 255, 12, label)) < 0.1
    is_padding = (image == np.rint(255 * np.asarray(CAMVID.mean))).all(-1)
    assert (label[is_padding] == 255).all()
    # Inside the blocks, away from edges that the bilinear picture blurs by a pixel or two.
    edges = cv2.dilate(
        (cv2.morphologyEx(example["label"], cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0).astype(np.uint8),
        np.ones((3, 3), np.uint8),
    )
    inside = (edges == 0) & ~is_padding
    assert inside.sum() > 200
    assert shown[inside].all()


def test_without_anything_to_draw_a_picture_stays_as_it_is_or_mirrored(blocks):
    seen = set()
    for seed in range(8):
        example = draw(
            make_record(blocks), np.random.default_rng(seed), crop_size=blocks.shape, scale=(1, 1), brightness=0
        )
        matches = [np.array_equal(example["label"], other) for other in (blocks, blocks[:, ::-1])]
        assert sum(matches) == 1
        seen.add(matches[0])
    assert seen == {True, False}


def test_a_picture_smaller_than_the_crop_is_padded_with_what_does_not_count():
    label = np.full((10, 20), 4, np.uint8)
    image = np.full((10, 20, 3), 7, np.uint8)
    example = draw(make_record(label, image), np.random.default_rng(0), scale=(1, 1), brightness=0)
    inside = np.zeros((48, 80), bool)
    inside[19:29, 30:50] = True
    np.testing.assert_array_equal(example["label"], np.where(inside, 4, 255))
    assert (example["image"][inside] == 7).all()
    assert (example["image"][~inside] == np.rint(255 * np.asarray(CAMVID.mean))).all()


def test_scales_are_drawn_evenly_between_half_and_double():
    label = np.tile(np.asarray([1, 2], np.uint8), (20, 10)).repeat(10, axis=1)
    label[:, 100:] = 3
    areas = []
    for seed in range(300):
        whole = draw(make_record(label), np.random.default_rng(seed), crop_size=(40, 400), brightness=0)["label"]
        areas.append((whole != 255).sum() / label.size)
    scales = np.sqrt(areas)
    assert 0.48 < scales.min() < 0.6
    assert 1.8 < scales.max() < 2.02
    # Four standard deviations of a median of 300 draws, of which the logarithm spans log 4.
    assert abs(np.log(np.median(scales))) < 4 * np.log(4) / (2 * np.sqrt(300))


def test_brightness_is_a_factor_within_its_bounds(blocks):
    image = np.full((*blocks.shape, 3), 100, np.uint8)
    image[0] = 250
    record = make_record(np.zeros_like(blocks), image)
    factors = []
    for seed in range(100):
        brighter = draw(record, np.random.default_rng(seed), crop_size=blocks.shape, scale=(1, 1), brightness=0.3)
        [factor] = np.unique(brighter["image"][1:]) / 100
        # The factor is known from 100 grey values to half of one, which makes 1.25 of 250.
        assert abs(int(brighter["image"][0, 0, 0]) - min(255, 250 * factor)) <= 2
        factors.append(factor)
    assert 0.7 <= min(factors) < 0.75
    assert 1.25 < max(factors) <= 1.3


def test_damaged_records_are_named(blocks):
    record = make_record(blocks)
    grey = png(blocks)
    cases = {
        "its picture cannot be decoded": {"image": record["image"][:200]},
        "its labels cannot be decoded": {"segmentation_label": b""},
        r"its picture has \(96, 128\) pixels, its labels \(95, 128\)": {"segmentation_label": png(blocks[1:])},
        "its labels are uint8 of shape .*with 2 axes": {"segmentation_label": record["image"]},
        "its labels are uint16": {"segmentation_label": png(blocks.astype(np.uint16))},
    }
    for message, changes in cases.items():
        with pytest.raises(BadExample, match=f"record scene_7 of camvid: {message}"):
            evaluation_example(record | changes, dataset=CAMVID)
        with pytest.raises(BadExample, match=message):
            draw(record | changes, np.random.default_rng(0))
    assert evaluation_example(record | {"image": grey}, dataset=CAMVID)["image"].shape == (96, 128, 3)


def test_a_record_in_which_nothing_counts_is_not_trained_on_but_evaluated():
    record = make_record(np.full((4, 6), 255, np.uint8))
    with pytest.raises(BadExample, match="record scene_7 of camvid: none of its 24 pixels counts"):
        draw(record, np.random.default_rng(0))
    assert (evaluation_example(record, dataset=CAMVID)["label"] == 255).all()


def test_a_label_that_is_no_class_is_an_error_and_not_skipped(blocks):
    labels = blocks.copy()
    labels[0, :3] = 11, 200, 11
    with pytest.raises(ValueError, match=r"scene_7 .*: 3 pixels have labels \[11, 200\], and camvid has 0 to 10"):
        evaluation_example(make_record(labels), dataset=CAMVID)


def test_a_stream_replaces_bad_records_and_counts_them(blocks):
    records = [make_record(blocks) for _ in range(6)]
    records[2] = records[2] | {"image": b"no picture"}
    with make_stream(records, draw, batch_size=6, seed=0) as stream:
        batch = next(stream)
    assert batch["image"].shape == (6, 48, 80, 3)
    assert batch["label"].shape == (6, 48, 80)
    assert np.sum(batch["skipped"]) == 1


def test_cityscapes_ids_become_the_classes_of_its_benchmark():
    ids = np.asarray([[7, 8, 33, 0, 9, 255]], np.uint8)
    record = make_record(ids, np.zeros((1, 6, 3), np.uint8), CITYSCAPES)
    example = evaluation_example(record, dataset=CITYSCAPES)
    assert example["label"].tolist() == [[0, 1, 18, 255, 255, 255]]
    classes = [number for number in CITYSCAPES.classes_of_ids if number != 255]
    assert classes == list(range(19))
    assert len(CITYSCAPES.classes_of_ids) == 34
    assert CITYSCAPES.class_names[13] == "car"
    assert CITYSCAPES.classes_of_ids[26] == 13
    with pytest.raises(ValueError, match=r"labels \[34\], and cityscapes has 0 to 33"):
        CITYSCAPES.classes(np.asarray([[34]], np.uint8))


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=lambda dataset: dataset.name)
def test_every_class_has_a_name_and_a_colour_of_its_own(dataset):
    assert len(dataset.class_names) == len(set(dataset.class_names)) == len(set(dataset.palette))
    assert np.asarray(dataset.palette).shape == (len(dataset.class_names), 3)


def test_a_name_that_does_not_exist_gets_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="'cityscape'; the nearest is 'cityscapes'"):
        street_scenes("cityscape")
    with pytest.raises(FileNotFoundError, match=f"camvid is not prepared in {tmp_path}"):
        load_street_scenes("camvid", tmp_path)


def test_camvid_is_read_whole(shared_datasets):
    source = load_street_scenes("camvid", shared_datasets)
    assert {split: len(records) for split, records in source.items()} == {"train": 367, "val": 101, "test": 233}
    example = evaluation_example(source["val"][3], dataset=CAMVID)
    assert example["image"].shape == (360, 480, 3)
    assert set(np.unique(example["label"])) <= {*range(11), 255}


@pytest.mark.slow
def test_camvids_mean_and_deviation_are_those_of_its_training_images(shared_datasets):
    source = load_street_scenes("camvid", shared_datasets)["train"]
    read = functools.partial(evaluation_example, dataset=CAMVID)
    images = [read(source[index])["image"].reshape(-1, 3) / np.float64(255) for index in range(len(source))]
    mean = np.mean([image.mean(0) for image in images], 0)
    square = np.mean([np.square(image).mean(0) for image in images], 0)
    np.testing.assert_allclose(mean, CAMVID.mean, atol=6e-5)
    np.testing.assert_allclose(np.sqrt(square - mean**2), CAMVID.std, atol=6e-5)


def test_a_split_is_evaluated_record_by_record(shared_datasets):
    source = load_street_scenes("camvid", shared_datasets)["val"]
    read = functools.partial(evaluation_example, dataset=CAMVID)
    batches = iter(evaluation_stream(source, read, batch_size=4))
    first = next(batches)
    assert first["mask"].all()
    np.testing.assert_array_equal(first["label"][1], read(source[1])["label"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(class_names=("road",)), "class_names has 1 names, and there are 11 classes"),
        (dict(mean=(120.0, 118.0, 115.0)), "must lie within 0 and 1, .*divide by 255"),
        (dict(std=(0.2, 0.0, 0.2)), "a channel without deviation"),
        (dict(classes_of_ids=(0, 11, 255, -1)), r"classes_of_ids of camvid holds \[-1, 11\]; classes are 0 to 10"),
    ],
)
def test_what_is_said_of_a_dataset_fits_it(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CAMVID, **changes)
