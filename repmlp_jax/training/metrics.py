"""The metrics of a run: a CSV file that survives interruptions, TensorBoard, and a plot of the curves."""

import csv
import io
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from repmlp_jax import plots
from repmlp_jax.listing import listed
from repmlp_jax.storage.whole_file import whole_file

logger = logging.getLogger("repmlp_jax")

COLUMNS = {"epoch": int, "step": int, "learning_rate": float, "train_loss": float, "train_accuracy": float}
"""The columns of every task; a column `test_NAME` for each of its scores follows."""

PICTURE = "curves.png"
SECONDS_BETWEEN_PICTURES = 60


class Metrics:
    """Writes a row for each epoch, and for steps in between, to `metrics.csv` and to TensorBoard.

    A value that was not measured is an empty cell, and None in `rows`. The file always holds complete rows, and no
    times: an interrupted run ends with the same file as an uninterrupted one.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; rows of later steps are dropped.
        scores: names of the task's scores.

    Raises:
        ValueError: if the file does not consist of complete rows of these columns, where the scores may be others; it
            stays as it is.
    """

    def __init__(self, workdir: Path, step: int, scores: Sequence[str]):
        self._columns = COLUMNS | {f"test_{name}": float for name in scores}
        self._path = workdir / "metrics.csv"
        self._picture = workdir / PICTURE
        rows = _read(self._path, self._columns) if self._path.exists() else []
        # The run so far may have measured other scores, such as the calibration on request.
        self._columns |= dict.fromkeys((name for row in rows[:1] for name in row if name not in self._columns), float)
        self.rows = [{name: row.get(name) for name in self._columns} for row in rows if row["step"] <= step]
        if self.rows != rows or not self._path.exists():
            self._write()
        self._drawn = time.perf_counter()
        # TensorBoard drops the points after `step`, which an interrupted run left.
        self._tensorboard = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1, flush_secs=10)

    def warn_of_missing(self, due: Iterable[int]) -> None:
        """Says of which steps there is no row, of those at which one was due before the run resumed."""
        there = {row["step"] for row in self.rows}
        if missing := [step for step in due if step not in there]:
            logger.warning(
                "%s has no rows for steps %s, which were run before; they are not repeated, and the rows stay missing",
                self._path,
                listed(missing),
            )

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
        """Draws the curves, if there are any, and closes TensorBoard's file."""
        if self.rows:
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
    try:
        with whole_file(path, overwrite=True) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def _read(path, columns):
    """The rows of a file, each of which ends with a line break; the first row is the columns' names.

    The columns of scores may be others than those of `columns`.
    """
    rows: list[dict[str, Any]] = []
    last = 0
    names: list[str] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(keepends=True) or [""]):
        cells = line.rstrip("\r\n").split(",")
        try:
            names = names or cells
            scores = names[len(COLUMNS) :]
            is_header = names == [*COLUMNS, *scores] and all(name.startswith("test_") for name in scores)
            if not (line.endswith("\n") and is_header and len(set(names)) == len(names)):
                raise ValueError
            if number:
                pairs = zip(names, cells, strict=True)
                rows.append({name: None if cell == "" else COLUMNS.get(name, float)(cell) for name, cell in pairs})
                if rows[-1]["step"] <= last:
                    raise ValueError
                last = rows[-1]["step"]
        except ValueError:
            header = ",".join(columns)
            if number == 0:
                mending = f"is not the header {header}. Restore it, or remove the file"
            else:
                mending = f"is not a complete row of {header}, of a later step than the rows before. Mend or remove it"
            raise ValueError(
                f"{path}, line {number + 1}: {line[:100]!r} {mending}: the run then resumes without the missing rows"
            ) from None
    return rows
