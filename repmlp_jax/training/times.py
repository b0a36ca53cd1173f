"""The time that a run takes, in `times.csv`: it goes on where an interrupted run was resumed."""

import contextlib
import csv
import io
import logging
import math
import resource
import time
from pathlib import Path
from typing import Any

import jax

from repmlp_jax.training.metrics import replace_text

logger = logging.getLogger("repmlp_jax")

COLUMNS = {
    **{"step": int, "seconds": float, "timed_steps": int, "timed_seconds": float},
    **{"waiting_seconds": float, "peak_memory": int},
}


class Times:
    """Measures the time of a run, and writes it with every row of metrics.

    A row holds sums since step 0: `seconds` of everything, evaluation, compilation and checkpoints included;
    `timed_seconds` of the training calls except the first of each process, which compiles, and their `timed_steps`;
    `waiting_seconds` of those in which the devices waited for data. `peak_memory` is in bytes. What a killed run did
    after its last checkpoint is not in the sums.

    Args:
        workdir: the run's folder.
        step: the step that the run resumes from; rows of later steps are dropped.
        feed: of the training steps.
    """

    def __init__(self, workdir: Path, step: int, feed: Any):
        self._path = workdir / "times.csv"
        self._rows = [row for row in _read(self._path) if row["step"] <= step]
        self._sums = dict(self._rows[-1]) if self._rows else {name: kind(0) for name, kind in COLUMNS.items()}
        if step and not self._rows:
            self._sums["seconds"] = math.nan  # No one knows how long the steps before took.
        self._feed = feed
        self._looked = time.perf_counter()
        self._is_compiled = False

    @contextlib.contextmanager
    def timed(self, count: int):
        """A context that runs `count` steps and waits for them."""
        start = time.perf_counter()
        yield
        end = time.perf_counter()
        if self._is_compiled:
            self._sums["timed_steps"] += count
            self._sums["timed_seconds"] += end - start
            self._sums["waiting_seconds"] += waiting_seconds(self._feed, count, start, end)
        self._is_compiled = True

    def add(self, step: int) -> None:
        """Writes the sums of the steps so far."""
        now = time.perf_counter()
        self._sums["seconds"] += now - self._looked
        self._looked = now
        self._sums |= dict(step=step, peak_memory=max(self._sums["peak_memory"], peak_memory()))
        self._rows.append(dict(self._sums))
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        replace_text(self._path, text.getvalue())

    def figures(self, batch_size: int, best_step: int | None) -> dict[str, Any]:
        """The entry `training` of `results.json`; None stands for what is not known."""
        seconds = {row["step"]: row["seconds"] for row in self._rows if math.isfinite(row["seconds"])}
        last = self._rows[-1] if self._rows else {}
        timed = last.get("timed_seconds")
        return dict(
            seconds=seconds.get(last.get("step")),
            seconds_to_best=seconds.get(best_step),
            images_per_second=last["timed_steps"] * batch_size / timed if timed else None,
            share_waiting_for_data=last["waiting_seconds"] / timed if timed else None,
            peak_memory_bytes=last.get("peak_memory"),
            peak_memory_of="process" if _of_devices() is None else "device",
        )


def waiting_seconds(feed: Any, count: int, start: float, end: float) -> float:
    """The seconds of a call in which the devices had nothing to compute since the next batch was not there.

    The host asks for batches ahead of the devices, so not all the time in which it waits is lost. After the last step
    was started, the devices took `end - feed.started` for it, and for the steps before if they were behind. If they
    had taken as long for each step, the rest of the call is what they waited, at most as long as the host did.
    """
    asking = getattr(feed, "asking_seconds", 0.0)
    if not asking:
        return 0.0
    return min(asking, max(0.0, (end - start) - count * (end - feed.started)))


def peak_memory() -> int:
    """The most bytes in use so far, of the fullest device where the platform tells it, and else of the process."""
    of_devices = _of_devices()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if of_devices is None else of_devices


def _of_devices() -> int | None:
    try:
        found = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    except jax.errors.JaxRuntimeError:  # which some platforms raise in place of an answer
        return None
    return max((peak for peak in found if peak is not None), default=None)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none if it is not there, or is damaged, which a warning says: no training depends on it."""
    try:
        with path.open(newline="") as file:
            return [{name: kind(row[name]) for name, kind in COLUMNS.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        logger.warning("%s cannot be read, and times are counted from here on: %s", path, error)
        return []
