"""What is saved about images and classes fits the model that it is saved with."""

import numpy as np
import pytest
from flax import nnx

from repmlp_jax import PureMLP, export_model, load_model, save_model
from repmlp_jax.storage.models import load

SOUND = dict(mean=(0.5, 0.4, 0.0), std=(0.25, 0.2, 1.0), class_names=["cat", "dog"], source={"year": 2021})


@pytest.fixture(scope="module")
def model():
    sizes = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1,))
    return PureMLP(2, **sizes, rngs=nnx.Rngs(0))


def test_preprocessing_comes_back_as_it_was(model, tmp_path):
    save_model(tmp_path / "model", model, preprocessing=SOUND)
    assert load(tmp_path / "model").preprocessing == SOUND | dict(mean=[0.5, 0.4, 0.0], std=[0.25, 0.2, 1.0])
    save_model(tmp_path / "nameless", model, preprocessing=dict(class_names=()))
    assert load_model(tmp_path / "nameless").input_shape == (8, 8, 3)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(class_names=["a"] * 16), ValueError, "class_names has 16 names, and there are 2 classes"),
        (dict(class_names="ab"), TypeError, "class_names must be a list of strings, not 'ab'"),
        (dict(class_names=[0, 1]), TypeError, r"class_names must be a list of strings, not \[0, 1\]"),
        (dict(mean=[0.5]), ValueError, "mean has 1 values, and the images have 3 channels"),
        (dict(mean=[123.7, 116.3, 103.5]), ValueError, r"mean is \[123.7, .*must lie within 0 and 1.*divide by 255"),
        (dict(mean=[0.5, 0.5, float("nan")]), ValueError, r"mean is \[0.5, 0.5, nan\], and must lie within 0 and 1"),
        (dict(class_names=np.array(["cat", "dog"])), TypeError, "class_names must be a list of strings, not array"),
        (dict(source=float("inf")), ValueError, "source, a float, cannot be saved as JSON: Out of range float"),
        (dict(std=[0.2, 0.0, 0.2]), ValueError, r"std is \[0.2, 0.0, 0.2\]: a channel without deviation"),
        (dict(std=0.2), TypeError, "std must be a list of numbers, one for each channel, not 0.2"),
        (dict(mean=np.full(3, 0.5)), TypeError, "mean, a ndarray, cannot be saved as JSON"),
        ({1: "one"}, TypeError, "preprocessing has the key 1, a int: keys must be strings"),
        (dict(source=[{2021: True}]), TypeError, "preprocessing has the key 2021, a int: keys must be strings"),
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(model, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        save_model(tmp_path / "model", model, preprocessing=SOUND | changes)
    with pytest.raises(error, match=message):
        export_model(model, tmp_path / "model", preprocessing=SOUND | changes)
    assert not list(tmp_path.iterdir())
