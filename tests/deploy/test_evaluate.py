"""Evaluating saved models: classes by name, grey datasets, and one line for a dataset that cannot be read."""

import types

import grey_pictures
import numpy as np
import pytest
from cases import abstract, randomised
from typer.testing import CliRunner

from repmlp_jax import PureMLP, data, save_model
from repmlp_jax.cli import app
from repmlp_jax.deploy.predict import evaluate

SIZES = dict(image_size=(12, 12), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1,))
IMAGES = np.stack([grey_pictures.bar(number)[0] for number in range(60)])[..., None]
NAMES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def model():
    return randomised(abstract(PureMLP, num_classes=3, **SIZES))


@pytest.fixture
def dataset(monkeypatch):
    """Registers a dataset with these labels and names."""

    def register(labels, names):
        about = types.SimpleNamespace(MEAN=(0.3,), STD=(0.3,), CLASS_NAMES=names)
        splits = {"train": (IMAGES, labels), "test": (IMAGES, labels)}
        monkeypatch.setitem(data.LOADERS, "bars60", lambda data_dir: (about, splits))

    return register


def saved(model, path, **preprocessing):
    save_model(path, model, preprocessing=dict(mean=(0.3,), std=(0.3,), **preprocessing))
    return path


def test_scores_do_not_depend_on_the_order_in_which_a_dataset_names_its_classes(model, dataset, tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, 60).astype(np.int32)
    dataset(labels, NAMES)
    named = saved(model, tmp_path / "named", class_names=NAMES)
    expected = evaluate(named, "bars60")
    order = np.array([1, 2, 0])
    dataset(np.argsort(order)[labels].astype(np.int32), [NAMES[number] for number in order])
    found = evaluate(named, "bars60")
    assert found["accuracy"] == expected["accuracy"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)


def test_classes_of_other_names_are_refused(model, dataset, tmp_path):
    dataset(np.arange(60) % 3, ("ant", "bee", "dog"))
    with pytest.raises(ValueError, match=r"names differ: only .*named has 'cat'; only bars60 has 'dog'"):
        evaluate(saved(model, tmp_path / "named", class_names=NAMES), "bars60")


def test_a_grey_dataset_of_tfds_is_evaluated(tmp_path):
    grey_pictures.prepare(tmp_path, names=["upright", "lying"])
    pair = randomised(abstract(PureMLP, num_classes=2, **SIZES))
    # The model's biases decide, so that it says "lying" of everything.
    pair.head.bias[...] = pair.head.bias[...] * 0 + np.array([1000, 0], np.float32)
    found = evaluate(saved(pair, tmp_path / "model", class_names=["lying", "upright"]), "bars", tmp_path)
    assert (found["accuracy"], found["images"]) == (0.5, grey_pictures.TEST)


def test_a_dataset_that_cannot_be_read_is_one_line(model, tmp_path):
    path = saved(model, tmp_path / "model")
    folder = grey_pictures.prepare(tmp_path)
    (file := folder / "bars-test.array_record-00000-of-00001").write_bytes(b"")
    for name, message in (("bars", f"{file} is damaged"), ("cars", f"cars is not prepared in {tmp_path}; the nearest")):
        result = CliRunner().invoke(app, ["evaluate", str(path), "--dataset", name, "--data-dir", str(tmp_path)])
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {message}")
        assert result.stderr.count("\n") == 1
