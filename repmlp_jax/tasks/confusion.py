"""Which classes a classifier confuses: tables and a picture in the folder of a run."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repmlp_jax import plots
from repmlp_jax.training.metrics import replace_text

MOST_CLASSES = 2000  # of a matrix; that of 20,000 classes would have 400 million cells


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of images, int64 (true classes, predicted classes)."""
    places = np.asarray(labels, np.int64) * classes + predicted
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def write_confusion(workdir: Path, labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> None:
    """Writes the accuracy of each class, and which classes are predicted for each.

    The files are `classes.csv`, and for at most `MOST_CLASSES` classes `confusion.csv`, a row for each true class, and
    `confusion.png`.

    Args:
        workdir: the folder of a run.
        labels: the true class of each image.
        predicted: its predicted class.
        names: of the classes.
    """
    images, right = (np.bincount(found, minlength=len(names)) for found in (labels, labels[labels == predicted]))
    shares = [
        f"{share:.6g}" if count else "" for share, count in zip(right / np.maximum(images, 1), images, strict=True)
    ]
    rows = zip(names, images, right, shares, strict=True)
    _write(workdir / "classes.csv", [["class", "images", "correct", "accuracy"], *rows])
    if len(names) <= MOST_CLASSES:
        matrix = confusion_matrix(labels, predicted, len(names))
        lines = ([name, *row] for name, row in zip(names, matrix, strict=True))
        _write(workdir / "confusion.csv", [["true class", *names], *lines])
        plots.confusion_matrix(matrix, names).savefig(workdir / "confusion.png", dpi=120)


def _write(path, rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    replace_text(path, text.getvalue())
