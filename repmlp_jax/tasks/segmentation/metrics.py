"""Metrics of a segmentation, and the segmentation of pictures larger than a model's input."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64, Integer, UInt8

from repmlp_jax.data.checks import height_and_width
from repmlp_jax.fusing.algebra import widened
from repmlp_jax.fusing.arguments import whole_number

IGNORED = 255


def confusion_matrix(
    labels: Integer[Array, "..."], predictions: Integer[Array, "..."], num_classes: int, ignore: int = IGNORED
) -> Int[Array, "{num_classes}+1 {num_classes}+1"]:
    """Counts how often each class (rows) is predicted as each class (columns); it works under jit.

    An additional row and column count labels and predictions that are not classes, for which `total_confusion` raises
    an error. Counts are int32, enough for one batch; `total_confusion` sums them in int64.

    Args:
        labels: true classes, of any integer dtype.
        predictions: predicted classes, of the same shape.
        num_classes: number of classes.
        ignore: label of pixels that do not count.

    Raises:
        TypeError: if labels or predictions are not integers, or `num_classes` is not a whole number.
        ValueError: if their shapes differ, there are more than 2^31 - 1 of them, or `num_classes` is not above 0.
    """
    for name, array in (("labels", labels), ("predictions", predictions)):
        if not hasattr(array, "dtype"):
            raise TypeError(f"{name} must be an array of integers, not a {type(array).__name__}")
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, not {array.dtype}")
    if labels.shape != predictions.shape:
        raise ValueError(f"labels have shape {labels.shape}, predictions {predictions.shape}")
    if math.prod(labels.shape) >= 2**31:
        raise ValueError(f"{math.prod(labels.shape)} pixels at once are more than int32 can count: use smaller batches")
    num_classes = whole_number("num_classes", num_classes, 1)
    rows, columns = (_index(array, num_classes) for array in (labels, predictions))
    rows = jnp.where(labels == ignore, num_classes + 1, rows)  # outside the matrix, so dropped
    zeros = jnp.zeros((num_classes + 1,) * 2, jnp.int32)
    return zeros.at[rows.ravel(), columns.ravel()].add(1, mode="drop")


def _index(classes, num_classes):
    is_class = (classes >= 0) & (classes < num_classes)
    return jnp.where(is_class, classes.astype(jnp.int32), num_classes)


def total_confusion(matrices: Iterable[Int[Array | np.ndarray, "rows rows"]]) -> Int64[np.ndarray, "classes classes"]:
    """Sums the matrices of `confusion_matrix` in int64.

    Raises:
        ValueError: if there are none, or labels or predictions are not classes; the message gives their number.
    """
    counted = [np.asarray(matrix, np.int64) for matrix in matrices]
    if not counted:
        raise ValueError("there are no confusion matrices to sum")
    total = np.sum(counted, axis=0)
    classes = len(total) - 1
    for what, strays in (("labels", total[-1].sum()), ("predictions", total[:, -1].sum())):
        if strays:
            raise ValueError(
                f"{strays} of {total.sum()} pixels that count have {what} outside the classes 0 to {classes - 1}"
            )
    return total[:-1, :-1]


class IntersectionOverUnion(NamedTuple):
    """The overlap of truth and prediction, as shares of 1.

    Attributes:
        per_class: of each class; nan for a class in neither truth nor prediction.
        mean: over the classes in truth or prediction; nan if there are none.
    """

    per_class: Float[np.ndarray, " classes"]
    mean: float


def intersection_over_union(matrix: Int64[np.ndarray, "classes classes"]) -> IntersectionOverUnion:
    """The intersection over union of each class, and their mean, the mIoU.

    Args:
        matrix: of `total_confusion`; rows are the truth, columns the predictions.
    """
    matrix = np.asarray(matrix, np.int64)
    intersection = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - intersection
    occurs = union > 0
    per_class = np.full(len(matrix), np.nan)
    per_class[occurs] = intersection[occurs] / union[occurs]
    return IntersectionOverUnion(per_class, float(per_class[occurs].mean()) if occurs.any() else math.nan)


def pixel_accuracy(matrix: Int64[np.ndarray, "classes classes"]) -> float:
    """The share of correct pixels among those that count; nan if no pixel counts."""
    matrix = np.asarray(matrix, np.int64)
    return float(np.trace(matrix) / matrix.sum()) if matrix.any() else math.nan


def sliding_window(
    predict: Callable[[np.ndarray], Float[Array, "B h w classes"]],
    image: UInt8[np.ndarray, "H W C"] | Float[np.ndarray, "H W C"],
    window: tuple[int, int],
    *,
    stride: tuple[int, int] | None = None,
    batch_size: int = 4,
    fill: float | Iterable[float] = 0,
) -> Float[np.ndarray, "H W classes"]:
    """Class probabilities of every pixel of a picture of any size, from a model that takes one size.

    Windows of the model's size cover the picture; the last of a row or column ends at the picture's edge. The
    probabilities (softmax of the logits) of overlapping windows are averaged. A picture smaller than the window is
    padded at its bottom and right, and the result is cropped. `predict` is always called with the same shape, so it is
    compiled once.

    Args:
        predict: windows (batch_size, h, w, C) → logits (batch_size, h, w, classes).
        image: the picture, in the dtype that `predict` takes.
        window: (h, w) of the model.
        stride: distance between windows, (down, across); None: two thirds of the window, rounded up.
        batch_size: windows in a call of `predict`.
        fill: colour of the padding, one number or one for each channel.

    Raises:
        TypeError: if `window` is not two whole numbers, or `batch_size` is not one.
        ValueError: if the window or the batch is empty, strides are below 1 or leave gaps between windows, the image is
            not (H, W, C), or `predict` returns another size.
    """
    window, batch_size = height_and_width("window", window), whole_number("batch_size", batch_size, 1)
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"image must be one picture (height, width, channels), not of shape {image.shape}")
    steps = tuple(-(-2 * side // 3) for side in window) if stride is None else tuple(stride)
    if any(not 1 <= step <= side for step, side in zip(steps, window, strict=True)):
        raise ValueError(f"stride {steps} must be 1 to the window's {tuple(window)}: more leaves gaps between windows")
    height, width, _ = image.shape
    size = tuple(max(sides) for sides in zip((height, width), window, strict=True))
    padded = np.empty((*size, image.shape[2]), image.dtype)
    padded[:] = fill
    padded[:height, :width] = image
    starts = itertools.product(*map(_starts, size, window, steps))
    sums: np.ndarray | None = None
    counts = np.zeros((*size, 1), np.float32)
    for batch in _batches(starts, batch_size):
        cuts = [(slice(top, top + window[0]), slice(left, left + window[1])) for top, left in batch]
        windows = np.stack([padded[cut] for cut in cuts] + [padded[cuts[-1]]] * (batch_size - len(cuts)))
        probabilities = np.asarray(jax.nn.softmax(widened(predict(windows))))
        if probabilities.ndim != 4 or probabilities.shape[:3] != windows.shape[:3]:
            raise ValueError(f"predict made {probabilities.shape} of windows {windows.shape}: sizes must agree")
        if sums is None:
            sums = np.zeros((*size, probabilities.shape[-1]), probabilities.dtype)
        for cut, each in zip(cuts, probabilities, strict=False):
            sums[cut] += each
            counts[cut] += 1
    assert sums is not None, "any picture has a window"
    return (sums / counts.astype(sums.dtype))[:height, :width]


def _starts(size: int, window: int, stride: int) -> list[int]:
    """The starts of the windows: every `stride` pixels; the last window ends with the picture."""
    return [*range(0, size - window, stride), size - window]


def _batches(items: Iterable, size: int) -> Iterator[list]:
    items = iter(items)
    return iter(lambda: list(itertools.islice(items, size)), [])
