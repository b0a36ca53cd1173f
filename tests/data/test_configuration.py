"""The preprocessing of models."""

import numpy as np
import pytest
from cases import abstract, randomised

from repmlp_jax import PureMLP, data_configuration, save_model
from repmlp_jax.data import cifar10, digits
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, resize_and_crop

SIZES = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(3,))


@pytest.mark.parametrize(
    ("name", "size", "mean"),
    [
        ("pure_mlp", (32, 32, 3), cifar10.MEAN),
        ("RepMLPNet-T256", (256, 256, 3), IMAGENET_MEAN),
        ("FaceResNet", (96, 96, 3), (0, 0, 0)),
    ],
)
def test_of_a_published_model(name, size, mean):
    found = data_configuration(name)
    assert (found.input_size, found.mean, found.interpolation, found.crop) == (size, mean, "area", 0.875)


def test_of_a_saved_model(tmp_path):
    model = randomised(abstract(PureMLP, **SIZES))
    save_model(tmp_path / "model", model, preprocessing=dict(mean=digits.MEAN, std=digits.STD))
    found = data_configuration(tmp_path / "model")
    assert (found.input_size, found.mean, found.std) == ((8, 8, 1), digits.MEAN, digits.STD)
    save_model(tmp_path / "without", model)
    assert data_configuration(str(tmp_path / "without"))[1:3] == ((0.0,), (1.0,))
    with pytest.raises(ValueError, match="the nearest is 'pure_mlp'"):
        data_configuration("pure_mpl")


@pytest.mark.usefixtures("unchecked_types")
def test_of_a_model_in_memory():
    with pytest.raises(TypeError, match="a PureMLP does not know the mean and std of its images: pass the name"):
        data_configuration(abstract(PureMLP, **SIZES))


def test_the_share_that_a_crop_keeps():
    image = np.repeat(np.arange(0, 200, 2, dtype=np.uint8), 100).reshape(100, 100, 1)
    kept = [np.ptp(resize_and_crop(image, 10, 10, crop).astype(int)) for crop in (0.5, 1.0)]
    assert kept[0] == pytest.approx(kept[1] / 2, abs=4)
