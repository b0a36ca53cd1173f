import numpy as np
import pytest

from repmlp_jax.data import digits, load_dataset


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("digits")


def test_sizes_and_dtypes(dataset):
    for (images, labels), examples in ((dataset.train, 1437), (dataset.test, 360)):
        assert images.shape == (examples, 8, 8, 1)
        assert labels.shape == (examples,)
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert set(labels) == set(range(10))
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train[0].min() == 0
    assert dataset.train[0].max() == 255


def test_the_splits_are_all_of_scikit_learns_digits(dataset):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    expected = sorted((tuple(image.ravel()), label) for image, label in zip(bunch.images, bunch.target, strict=True))
    # The 17 shades come back from 255 by rounding; as all 1,797 are there once, the splits are disjoint.
    found = sorted(
        (tuple(np.round(image.ravel() * (16 / 255))), label)
        for images, labels in (dataset.train, dataset.test)
        for image, label in zip(images, labels, strict=True)
    )
    assert found == expected


def test_the_split_is_the_same_every_time(dataset):
    again = load_dataset("digits")
    assert (again.train[0] == dataset.train[0]).all()
    assert (again.test[1] == dataset.test[1]).all()


def test_mean_and_deviation_are_those_of_the_training_images(dataset):
    scaled = dataset.train[0].astype(np.float64) / 255
    assert abs(scaled.mean() - dataset.mean[0]) < 1e-4
    assert abs(scaled.std() - dataset.std[0]) < 1e-4
    assert (dataset.mean, dataset.std) == (digits.MEAN, digits.STD)


def test_the_nearest_name_is_named():
    with pytest.raises(
        ValueError, match=r"no dataset is called 'digit'; the nearest is 'digits'. There are: cifar10, digits"
    ):
        load_dataset("digit")
