"""Prepared datasets: grey ones are read as they are, and what is damaged or not there is named."""

import functools
import pickle
import shutil

import grey_pictures
import numpy as np
import pytest

from repmlp_jax.data import open_dataset
from repmlp_jax.data.imagenet import evaluation_example, training_example
from repmlp_jax.data.prepared import open_prepared

TRAIN_FILE = "bars-train.array_record-00000-of-00001"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return grey_pictures.prepare(tmp_path_factory.mktemp("tensorflow_datasets"))


@pytest.fixture
def data_dir(prepared, tmp_path):
    """A copy to damage."""
    shutil.copytree(prepared, tmp_path / "bars" / "1.0.0")
    return tmp_path


def test_grey_pictures_are_decoded_to_one_channel_or_three(prepared):
    for channels in (1, 3):
        dataset = open_dataset("bars", prepared.parents[1], channels)
        assert (len(dataset.train), len(dataset.validation)) == (grey_pictures.TRAIN, grey_pictures.TEST)
        assert (dataset.num_classes, dataset.class_names) == (2, ())
        assert len(dataset.mean) == len(dataset.std) == dataset.channels == channels
        read = functools.partial(evaluation_example, size=(12, 12), num_classes=2, channels=channels)
        found = sorted((example["image"].tobytes(), int(example["label"])) for example in map(read, dataset.validation))
        bars = [grey_pictures.bar(number) for number in range(1000, 1000 + grey_pictures.TEST)]
        assert found == sorted((np.repeat(image[..., None], channels, 2).tobytes(), label) for image, label in bars)
        trained = training_example(dataset.train[0], np.random.default_rng(0), size=(8, 8), channels=channels)
        assert trained["image"].shape == (8, 8, channels)


def test_pictures_in_colour_are_not_turned_grey(shared_datasets):
    with pytest.raises(ValueError, match=r"holds pictures in colour, and not of 1 channel: set .*in_features=3"):
        open_dataset("cifar10:3.0.2", shared_datasets, channels=1)
    with pytest.raises(ValueError, match=r"channels=4: cifar10:3\.0\.2 is decoded to 3"):
        open_dataset("cifar10:3.0.2", shared_datasets, channels=4)


def test_names_are_those_that_the_dataset_has(tmp_path):
    grey_pictures.prepare(tmp_path, names=["upright", "lying"])
    assert open_dataset("bars", tmp_path, 1).class_names == ("upright", "lying")


def test_records_can_be_pickled_for_worker_processes(prepared):
    _, splits = open_prepared("bars", prepared.parents[1])
    again = pickle.loads(pickle.dumps(splits["test"]))
    assert [example["label"] for example in again] == [example["label"] for example in splits["test"]]
    with pytest.raises(IndexError):
        again[grey_pictures.TEST]


@pytest.mark.parametrize("kept", [0, 8000, -10], ids=["empty", "too short", "without its end"])
def test_a_truncated_file_of_records_is_named_before_anything_is_trained(data_dir, kept):
    file = data_dir / "bars" / "1.0.0" / TRAIN_FILE
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{file} is damaged .*: remove its folder. Prepare it, .*`tfds build bars "):
        open_dataset("bars", data_dir)


def test_a_missing_file_of_records_is_named(data_dir):
    (file := data_dir / "bars" / "1.0.0" / TRAIN_FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"there is no file {file}, which split 'train' needs. Prepare it"):
        open_dataset("bars", data_dir)


def test_a_file_with_other_records_is_named(data_dir):
    folder = data_dir / "bars" / "1.0.0"
    shutil.copy(folder / "bars-test.array_record-00000-of-00001", folder / TRAIN_FILE)
    with pytest.raises(ValueError, match=f"{folder / TRAIN_FILE} is damaged, with 16 of 48 records"):
        open_dataset("bars", data_dir)


def test_another_version_is_not_there(data_dir):
    with pytest.raises(FileNotFoundError, match=f"bars:2.0.0 is not prepared .*; there is {data_dir}/bars/1.0.0"):
        open_dataset("bars:2.0.0", data_dir)


def test_a_damaged_record_names_its_file(data_dir):
    file = data_dir / "bars" / "1.0.0" / TRAIN_FILE
    content = bytearray(file.read_bytes())
    content[2000] ^= 255
    file.write_bytes(content)
    records = open_dataset("bars", data_dir).train
    with pytest.raises(ValueError, match=f"{file} is damaged: record [0-9]+ of 48 cannot be read"):
        [records[index] for index in range(len(records))]
    with pytest.raises(ValueError, match=f"{file} is damaged: record [0-9]+ of 48 cannot be read"):
        records.__getitems__(range(len(records)))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"name": "ba'], ids=["empty", "list", "nothing", "half"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_damaged_description_is_named(data_dir, name, content):
    (file := data_dir / "bars" / "1.0.0" / name).write_text(content)
    with pytest.raises(ValueError, match=f"{file} is empty or damaged: remove its folder. Prepare it"):
        open_dataset("bars", data_dir)


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_missing_description_is_named(data_dir, name):
    (file := data_dir / "bars" / "1.0.0" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"bars is not prepared in {data_dir}: there is no {file}. Prepare it"):
        open_dataset("bars", data_dir)


@pytest.mark.usefixtures("unchecked_types")
def test_a_name_that_is_none_is_refused(tmp_path):
    for name in (5, None, ["digits"]):
        with pytest.raises(TypeError, match="the name of a dataset must be a string, not "):
            open_dataset(name, tmp_path)
    with pytest.raises(ValueError, match="'no such/ name' cannot be opened as a TFDS dataset"):
        open_dataset("no such/ name", tmp_path)
