"""The figures of a run: a CSV file that survives every interruption, TensorBoard, and a picture of the curves."""

import csv
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from repmlp_jax import plots

COLUMNS = {
    "epoch": int,
    "step": int,
    "learning_rate": float,
    "train_loss": float,
    "train_accuracy": float,
}
"""Those of every task; its scores follow, each as `test_` and its name."""

SECONDS_BETWEEN_PICTURES = 60


class Metrics:
    """A row for each epoch, and for steps between, in `metrics.csv`, and the same in TensorBoard.

    What was not measured is an empty cell, and None in `rows`.

    The file is always a whole number of rows, and holds what follows from the configuration alone, no times: an
    interrupted run ends with the same file as an undisturbed one.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; rows of later steps are dropped, to be made again.
        scores: what the task measures of a model.
    """

    def __init__(self, workdir: Path, step: int, scores: Sequence[str]):
        self._columns = COLUMNS | {f"test_{name}": float for name in scores}
        self._path = workdir / "metrics.csv"
        self._picture = workdir / "curves.png"
        rows = _read(self._path, self._columns) if self._path.exists() else []
        self.rows = [row for row in rows if row["step"] <= step]
        if self.rows != rows:
            self._write()
        self._drawn = time.perf_counter()
        # TensorBoard drops the points from this step on, as of an interrupted run; that of `step` itself is kept.
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def add(self, *, images_per_second: float, **row) -> None:
        """Adds a row, with what was measured of the columns; it is on the disk when this returns."""
        self.rows.append({name: kind(row[name]) if name in row else None for name, kind in self._columns.items()})
        self._write()
        for name in set(row) - {"epoch", "step"}:
            self._tensorboard.add_scalar(name, row[name], row["step"])
        self._tensorboard.add_scalar("images_per_second", images_per_second, row["step"])
        if time.perf_counter() - self._drawn > SECONDS_BETWEEN_PICTURES:
            self._draw()

    def close(self) -> None:
        """Draws the last picture and closes TensorBoard's file."""
        self._draw()
        self._tensorboard.close()

    def _draw(self):
        plots.learning_curves(self.rows).savefig(self._picture, dpi=120)
        self._drawn = time.perf_counter()

    def _write(self):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        replace_text(self._path, text.getvalue())


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that at every instant there is either the old one or the new one, whole."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path, columns):
    with path.open(newline="") as file:
        return [
            {name: None if row[name] == "" else kind(row[name]) for name, kind in columns.items()}
            for row in csv.DictReader(file)
        ]
