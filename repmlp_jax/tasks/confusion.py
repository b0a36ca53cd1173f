"""Which classes a classifier confuses: tables and a picture in the folder of a run."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from repmlp_jax import plots
from repmlp_jax.training.metrics import replace_text


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts of images, int64 (true classes, predicted classes)."""
    places = np.asarray(labels, np.int64) * classes + predicted
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def write_confusion(workdir: Path, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Writes `confusion.csv`, a row for each true class, `classes.csv`, the accuracy of each, and `confusion.png`."""
    _write(
        workdir / "confusion.csv", [["true class", *names], *([n, *row] for n, row in zip(names, matrix, strict=True))]
    )
    images, right = matrix.sum(1), np.diag(matrix)
    accuracies = [
        f"{share:.6g}" if count else "" for share, count in zip(right / np.maximum(images, 1), images, strict=True)
    ]
    rows = zip(names, images, right, accuracies, strict=True)
    _write(workdir / "classes.csv", [["class", "images", "correct", "accuracy"], *rows])
    plots.confusion_matrix(matrix, names).savefig(workdir / "confusion.png", dpi=120)


def _write(path, rows):
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    replace_text(path, text.getvalue())
