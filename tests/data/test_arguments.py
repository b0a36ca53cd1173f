"""Arguments of the wrong type or out of range are named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from repmlp_jax.data import augment, load_dataset, mixing, policies
from repmlp_jax.data.packed import write_packed
from repmlp_jax.data.preprocessing import resize, resize_and_crop
from repmlp_jax.data.stream import evaluation_stream, make_stream
from repmlp_jax.tasks.segmentation.metrics import confusion_matrix, sliding_window
from repmlp_jax.training.evaluation import ResidentBatches, images_per_second

pytestmark = pytest.mark.usefixtures("unchecked_types")

KEY = jax.random.key(0)
IMAGES = np.zeros((2, 4, 4, 3), np.uint8)
FLOATS = jnp.zeros((2, 4, 4, 3), jnp.float32)
TARGETS = jnp.eye(2, dtype=jnp.float32)
PICTURE = np.zeros((8, 8, 3), np.uint8)
RANDOM = np.random.default_rng(0)
HALF = [0.5] * 3


def train_on(source=range(4), transform=lambda example, random: {}, batch_size=2, seed=0, **arguments):
    return make_stream(source, transform, batch_size=batch_size, seed=seed, **arguments)


def evaluate_on(source=range(4), transform=lambda example: {}, batch_size=2, **arguments):
    return evaluation_stream(source, transform, batch_size=batch_size, **arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: load_dataset(5), TypeError, "the name of a dataset must be a string, not 5"),
        (lambda: augment.pad_and_crop(KEY, IMAGES, 1.5), TypeError, "padding must be a whole number, not 1.5"),
        (lambda: augment.flip(KEY, [1]), TypeError, "the images must be an array, not a list"),
        (lambda: augment.normalise(IMAGES, 0.5, HALF), TypeError, "mean must be a list of numbers, one for each ch"),
        (lambda: augment.normalise(IMAGES, HALF, HALF, jnp.int32), TypeError, "dtype must be a floating dtype, not "),
        (lambda: mixing.mix(KEY, FLOATS, TARGETS, mixup="0.2"), TypeError, "mixup must be a number, not '0.2'"),
        (lambda: mixing.mix(KEY, [1], TARGETS, mixup=0.2), TypeError, "images must be an array, not a list"),
        (lambda: mixing.cutmix_weights(KEY, 1.0, (3,)), TypeError, r"shape must be \(height, width\), two whole num"),
        (lambda: mixing.cutmix_weights(KEY, -1.0, (3, 4)), ValueError, "alpha=-1.0 must be a finite number above 0"),
        (lambda: mixing.mixup_weights(KEY, 0.0, (3, 4)), ValueError, "alpha=0.0 must be a finite number above 0"),
        (lambda: train_on(batch_size=2.0), TypeError, "batch_size must be a whole number, not 2.0"),
        (lambda: train_on(seed=0.5), TypeError, "seed must be a whole number, not 0.5"),
        (lambda: train_on(seed=2**32), ValueError, "seed=4294967296 must not be below 0 or above 42949"),
        (lambda: train_on(start="1"), TypeError, "start must be a whole number, not '1'"),
        (lambda: train_on(source=iter([])), TypeError, "source must have a length and examples by index"),
        (lambda: train_on(transform=None), TypeError, "transform must be a function of an example, not None"),
        (lambda: evaluate_on(workers="1"), TypeError, "workers must be a whole number, not '1'"),
        (lambda: evaluate_on(process_index=0.5, process_count=2), TypeError, "process_index must be a whole number"),
        (lambda: policies.rand_augment([1], RANDOM), TypeError, r"the image must be a NumPy array, uint8 \(H, W, 3\)"),
        (lambda: policies.auto_augment(PICTURE, 0), TypeError, "random must be a numpy.random.Generator, as default"),
        (lambda: policies.rand_augment(PICTURE, RANDOM, layers=1.5), TypeError, "layers must be a whole number, not"),
        (lambda: resize(PICTURE, 4), TypeError, r"size must be \(height, width\), two whole numbers, not 4"),
        (lambda: resize(PICTURE, (0, 4)), ValueError, "size=0 must not be below 1"),
        (lambda: resize(PICTURE[..., 0], (4, 4)), ValueError, r"must be \(H, W, C\) with at least one pixel, not of"),
        (lambda: resize_and_crop(PICTURE, 4.0, 4), TypeError, "height must be a whole number, not 4.0"),
        (lambda: resize_and_crop(PICTURE[:0], 4, 4), ValueError, r"with at least one pixel, not of shape \(0, 8, 3\)"),
        (lambda: ResidentBatches(dict(a=IMAGES, b=IMAGES[:1]), 2, None), ValueError, "not {'a': 2, 'b': 1}"),
        (lambda: ResidentBatches(dict(a=IMAGES), 0, None), ValueError, "batch_size=0 must be above 0"),
        (lambda: images_per_second(lambda: FLOATS, 1, 0), ValueError, "runs=0 must be above 0"),
        (lambda: confusion_matrix([1], [1], 2), TypeError, "labels must be an array of integers, not a list"),
        (lambda: confusion_matrix(IMAGES, IMAGES, 0), ValueError, "num_classes=0 must not be below 1"),
        (lambda: sliding_window(None, PICTURE, (4, 4), batch_size=0), ValueError, "batch_size=0 must not be below 1"),
        (lambda: sliding_window(None, PICTURE, 4), TypeError, r"window must be \(height, width\), two whole numbers"),
    ],
)
def test_the_argument_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_numpys_numbers_are_whole_numbers_too():
    stream = make_stream(
        range(4), lambda example, random: {"index": np.int32(example)}, batch_size=np.int64(4), seed=np.uint32(0)
    )
    with stream:
        assert sorted(next(stream)["index"]) == [0, 1, 2, 3]
    mean = np.array([0.5, 0.25, 0.0])
    expected = augment.normalise(IMAGES, mean.tolist(), HALF)
    for given in (mean, jnp.asarray(mean)):
        assert (augment.normalise(IMAGES, given, HALF) == expected).all()
    assert (jax.jit(augment.normalise)(IMAGES, jnp.asarray(mean), jnp.asarray(HALF)) == expected).all()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [(b"x", 1)]}, "there are no pictures of split 'test'; it takes train and test"),
        ({"train": [], "test": [(b"x", 1)]}, "there are no pictures of split 'train'"),
        ({"train": [(b"x", 1.7)], "test": [(b"x", 1)]}, r"the labels of 'train' must be integers \(N,\), not float64"),
        ({"train": [(b"x", -1)], "test": [(b"x", 1)]}, "the labels of 'train' go from -1 to -1"),
    ],
)
def test_what_is_packed_are_pictures_with_labels(tmp_path, splits, message):
    with pytest.raises(ValueError, match=message):
        write_packed(tmp_path / "file.npz", splits)
    assert not list(tmp_path.iterdir())
