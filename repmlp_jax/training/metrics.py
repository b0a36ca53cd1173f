"""The metrics of a run: a CSV file that survives interruptions, TensorBoard, and a plot of the curves."""

import csv
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path

from tensorboardX import SummaryWriter

from repmlp_jax import plots

COLUMNS = {"epoch": int, "step": int, "learning_rate": float, "train_loss": float, "train_accuracy": float}
"""The columns of every task; a column `test_NAME` for each of its scores follows."""

SECONDS_BETWEEN_PICTURES = 60


class Metrics:
    """Writes a row for each epoch, and for steps in between, to `metrics.csv` and to TensorBoard.

    A value that was not measured is an empty cell, and None in `rows`. The file always holds complete rows, and no
    times: an interrupted run ends with the same file as an uninterrupted one.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; rows of later steps are dropped.
        scores: names of the task's scores.
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
        # TensorBoard drops the points after `step`, which an interrupted run left.
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def add(self, *, images_per_second: float, **row) -> None:
        """Adds a row of the columns that were measured; it is on disk when this returns."""
        self.rows.append({name: kind(row[name]) if name in row else None for name, kind in self._columns.items()})
        self._write()
        step = row["step"]
        for name, value in {**row, "images_per_second": images_per_second}.items():
            if name not in ("epoch", "step"):
                self._tensorboard.add_scalar(name, value, step)
        if time.perf_counter() - self._drawn > SECONDS_BETWEEN_PICTURES:
            self._draw()

    def close(self) -> None:
        """Draws the curves and closes TensorBoard's file."""
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
    """Replaces a file atomically: a reader sees the old text or the new one."""
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
