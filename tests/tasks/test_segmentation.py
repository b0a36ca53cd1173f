"""Confusion matrices against counting by hand, and windows that slide over pictures of any size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax.tasks.segmentation.metrics import (
    confusion_matrix,
    intersection_over_union,
    pixel_accuracy,
    sliding_window,
    total_confusion,
)

count = jax.jit(confusion_matrix, static_argnums=(2, 3))


def total(labels, predictions, num_classes=3):
    return total_confusion([count(jnp.asarray(labels), jnp.asarray(predictions), num_classes)])


def test_every_pair_is_counted_in_its_cell():
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 2, 3, 255], (4, 7, 5)).astype(np.uint8)
    predictions = random.integers(0, 4, labels.shape, np.int32)
    expected = [[((labels == row) & (predictions == column)).sum() for column in range(4)] for row in range(4)]
    matrix = total(labels, predictions, 4)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64])
def test_labels_may_be_of_any_integer_dtype(dtype):
    ignore = -1 if dtype == np.int8 else 255
    labels = np.asarray([0, 2, ignore], dtype)
    matrix = total_confusion([count(jnp.asarray(labels), jnp.asarray([0, 1, 1]), 3, ignore)])
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_sums_of_many_batches_do_not_overflow():
    batch = np.zeros((4, 4), np.int32)
    batch[0, 1] = 2**31 - 1
    assert total_confusion([batch] * 5)[0, 1] == 5 * (2**31 - 1)


def test_a_batch_beyond_int32_is_refused():
    many = jax.ShapeDtypeStruct((2**11, 2**10, 2**10), jnp.uint8)
    with pytest.raises(ValueError, match="2147483648 pixels at once are more than int32 can count"):
        jax.eval_shape(lambda labels: confusion_matrix(labels, labels, 3), many)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3, 3, 255], [0, 1, 1, 9], "2 of 3 pixels that count have labels outside the classes 0 to 2"),
        ([0, -1, 1, 255], [0, 1, 1, 0], "1 of 3 pixels that count have labels outside"),
        ([0, 1, 1, 255], [0, 7, -2, 0], "2 of 3 pixels that count have predictions outside"),
    ],
)
def test_what_is_no_class_is_an_error_that_says_how_many(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        total(labels, predictions)


@pytest.mark.usefixtures("unchecked_types")
def test_arrays_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"labels have shape \(2,\), predictions \(3,\)"):
        confusion_matrix(jnp.zeros(2, jnp.uint8), jnp.zeros(3, jnp.uint8), 3)
    with pytest.raises(TypeError, match="predictions must be integers, not float32"):
        confusion_matrix(jnp.zeros(2, jnp.uint8), jnp.zeros(2, jnp.float32), 3)
    with pytest.raises(ValueError, match="no confusion matrices"):
        total_confusion([])


def test_a_picture_without_labels_counts_nothing():
    labels = np.full((5, 5), 255, np.uint8)
    nothing = total(labels, np.ones((5, 5), np.int32))
    assert not nothing.any()
    assert np.isnan(pixel_accuracy(nothing))
    assert np.isnan(intersection_over_union(nothing).mean)
    something = total([0, 1, 1], [0, 1, 0])
    assert intersection_over_union(something + nothing).mean == intersection_over_union(something).mean


def test_intersection_over_union_by_hand():
    # Class 0: 2 right of 2 true and 3 predicted; 1: 1 right of 3 true and 2 predicted; 2 is wrongly predicted once.
    matrix = total([0, 0, 1, 1, 1], [0, 0, 0, 1, 2], 4)
    found = intersection_over_union(matrix)
    np.testing.assert_allclose(found.per_class, [2 / 3, 1 / 3, 0, np.nan])
    # Class 3 is neither in truth nor in prediction and does not count; class 2, only predicted, does.
    assert found.mean == pytest.approx(1 / 3)
    assert pixel_accuracy(matrix) == 3 / 5


def test_a_perfect_prediction_has_1():
    labels = np.arange(3).repeat(4)
    assert intersection_over_union(total(labels, labels, 5)).mean == 1
    assert pixel_accuracy(total(labels, labels, 5)) == 1


def position(windows):
    """A model that sees each pixel by itself: its logits are its channels."""
    return np.asarray(windows, np.float64)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize(
    ("size", "stride"),
    [((9, 14), None), ((9, 14), (4, 5)), ((4, 5), None), ((3, 4), None), ((2, 11), None), ((9, 14), (1, 1))],
)
def test_a_model_that_sees_single_pixels_gives_the_same_in_windows(size, stride):
    image = np.random.default_rng(0).normal(size=(*size, 3))
    probabilities = sliding_window(position, image, (4, 5), stride=stride, batch_size=3)
    assert_close(probabilities, softmax(image), ROUNDING_F64)


def test_overlapping_windows_are_averaged():
    """Two windows of a row, of which each says how many it was of all."""
    windows_seen = iter(range(9))

    def predict(windows):
        logits = np.zeros((*windows.shape[:3], 2))
        for logit in logits:
            logit[..., 1] = next(windows_seen)
        return logits

    probabilities = sliding_window(predict, np.zeros((2, 6, 1)), (2, 4), stride=(2, 2), batch_size=1)
    first, second = softmax(np.asarray([[0, 0], [0, 1]]))[:, 1]
    expected = np.asarray([first, first, (first + second) / 2, (first + second) / 2, second, second])
    assert_close(probabilities[..., 1], np.stack([expected] * 2), ROUNDING_F64)


def test_one_program_serves_pictures_of_every_size():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def predict(windows):
        assert windows.shape == (4, 4, 5, 2)
        return windows.astype(jnp.float32)

    for size in ((3, 3), (4, 5), (17, 9)):
        image = np.random.default_rng(0).integers(0, 9, (*size, 2)).astype(np.uint8)
        probabilities = sliding_window(predict, image, (4, 5), batch_size=4, fill=(7, 8))
        assert_close(probabilities, softmax(image.astype(np.float64)), ROUNDING_F32)


def test_small_pictures_are_filled_up_with_the_colour():
    seen = []

    def predict(windows):
        seen.append(windows)
        return np.zeros((*windows.shape[:3], 2))

    sliding_window(predict, np.ones((2, 3, 2), np.uint8), (4, 4), batch_size=1, fill=(5, 6))
    [windows] = seen
    assert windows.dtype == np.uint8
    assert (windows[0, :2, :3] == 1).all()
    assert (windows[0, 2:] == (5, 6)).all()
    assert (windows[0, :, 3:] == (5, 6)).all()


@pytest.mark.usefixtures("unchecked_types")
def test_sizes_that_cannot_be_are_refused():
    image = np.zeros((8, 8, 3))
    with pytest.raises(ValueError, match=r"stride \(5, 2\) must be 1 to the window's \(4, 4\)"):
        sliding_window(position, image, (4, 4), stride=(5, 2))
    with pytest.raises(ValueError, match=r"stride \(0, 2\)"):
        sliding_window(position, image, (4, 4), stride=(0, 2))
    with pytest.raises(ValueError, match=r"one picture .*not of shape \(1, 8, 8, 3\)"):
        sliding_window(position, image[None], (4, 4))
    with pytest.raises(ValueError, match=r"predict made \(4, 2, 2, 3\) of windows \(4, 4, 4, 3\)"):
        sliding_window(lambda windows: windows[:, ::2, ::2], image, (4, 4))
