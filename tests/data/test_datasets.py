import jax.numpy as jnp
import numpy as np
import pytest

from repmlp_jax.data import Dataset, digits, load_dataset


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


IMAGES, LABELS = np.zeros((6, 4, 5, 3), np.uint8), np.arange(6, dtype=np.int32) % 3
SOUND = dict(
    train=(IMAGES, LABELS), test=(IMAGES, LABELS), mean=[0.5] * 3, std=[0.2] * 3, class_names=["one", "two", "three"]
)


@pytest.mark.parametrize("labels", [LABELS.astype(dtype) for dtype in (np.uint8, np.int32, np.int64)])
def test_a_sound_dataset_is_kept_as_it_is(labels):
    dataset = Dataset(**SOUND | dict(train=(IMAGES, labels)))
    assert dataset.train[0] is IMAGES
    assert dataset.train[1] is labels


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES, LABELS + 1, ValueError, "labels go from 1 to 3, and classes are numbered 0 to 2: 2 of 6 labels are"),
        (
            IMAGES,
            np.where(LABELS == 1, -1, LABELS),
            ValueError,
            "labels go from -1 to 2, .*: 2 of 6 labels are not",
        ),
        (
            IMAGES,
            np.eye(3, dtype=np.int32)[LABELS],
            ValueError,
            r"labels must be integers \(N,\), not int32 \(6, 3\)",
        ),
        (IMAGES, LABELS.astype(float), ValueError, r"labels must be integers \(N,\), not float64 \(6,\)"),
        (IMAGES, LABELS > 0, ValueError, r"labels must be integers \(N,\), not bool \(6,\)"),
        (IMAGES, LABELS.tolist(), TypeError, "labels must be an array, not a list"),
        (IMAGES, np.tile(LABELS, 2), ValueError, "split has 6 images and 12 labels, not one for each image"),
        (IMAGES[:0], LABELS[:0], ValueError, "split has 0 images and 0 labels"),
        (IMAGES / 255, LABELS, ValueError, r"images must be uint8 \(N, H, W, C\), not float64 .*; multiply by 255"),
        (IMAGES[..., 0], LABELS, ValueError, r"images must be uint8 \(N, H, W, C\), not uint8 \(6, 4, 5\)"),
    ],
)
def test_images_and_labels_that_do_not_go_together_are_refused(split, images, labels, error, message):
    which = dict(train="the training ", test="the test ")[split]
    with pytest.raises(error, match=which + message):
        Dataset(**SOUND | {split: (images, labels)})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            dict(test=(IMAGES[:, :2], LABELS)),
            ValueError,
            r"training images have shape \(4, 5, 3\), the test",
        ),
        (dict(mean=[0.5]), ValueError, "mean has 1 values, and the images have 3 channels"),
        (dict(mean=[125.0] * 3), ValueError, "must lie within 0 and 1, .*divide by 255"),
        (dict(std=[0.0, 0.2, 0.2]), ValueError, "a channel without deviation"),
        (dict(mean=None), TypeError, "mean must be a list of numbers, one for each channel, not None"),
        (dict(train=IMAGES), TypeError, r"the training split must be \(images, labels\), not a ndarray"),
        (dict(class_names=None), TypeError, "class_names must be a list of strings, not None"),
        (dict(class_names="abc"), TypeError, "class_names must be a list of strings, not 'abc'"),
    ],
)
def test_what_is_said_of_a_dataset_has_to_fit_it(changes, error, message):
    with pytest.raises(error, match=message):
        Dataset(**SOUND | changes)


def test_statistics_may_be_arrays():
    dataset = Dataset(**SOUND | dict(mean=np.full(3, 0.5), std=jnp.full(3, 0.25)))
    assert dataset.mean == (0.5, 0.5, 0.5)
    assert dataset.std == (0.25, 0.25, 0.25)
