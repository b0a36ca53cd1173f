"""The checkpoints of a training run: the latest and the best are kept, the newest whole one is read."""

import logging
import math
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from repmlp_jax.storage import checkpoint_format
from repmlp_jax.storage.checkpoint_format import CheckpointError

logger = logging.getLogger("repmlp_jax")


class Checkpoints:
    """A folder of checkpoints, each a folder named by its step.

    A context manager; leaving it waits for the save under way. Where several processes train together, all
    of them make every call, in the same order, and see the same file system.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        latest: int = 2,
        best: str = "test_accuracy",
        config: Mapping[str, Any] | None = None,
    ):
        """Makes the folder if need be, and removes what a killed run left half-written.

        Args:
            folder: where the checkpoints are.
            latest: how many of the newest checkpoints to keep, at least 1.
            best: the metric, higher is better, whose best checkpoint is kept too.
            config: what each checkpoint says of the run that made it, as JSON.
        """
        if latest < 1:
            raise ValueError(f"latest must be at least 1, got {latest}")
        self.folder = Path(folder).absolute()
        self._latest = latest
        self._best = best
        self._config = config or {}
        self._saving: tuple[int, Any] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        _wait_for_all("checkpoints opened")
        self._metrics: dict[int, Mapping[str, float]] = {step: self._read_metrics(step) for step in self.steps()}

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, in ascending order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def best_step(self) -> int | None:
        """The step whose metric `best` is highest, the earliest of equals; None where none was measured."""
        scores = {step: self._metrics[step].get(self._best, math.nan) for step in self.steps()}
        return max(
            (step for step in scores if math.isfinite(scores[step])), key=lambda step: scores[step], default=None
        )

    def would_be_best(self, metrics: Mapping[str, float], *others: Mapping[str, float]) -> bool:
        """Whether the metric `best` of a state is higher than that of every saved one, and of the others."""
        score, *scores = (one.get(self._best, math.nan) for one in (metrics, *others, *self._metrics.values()))
        return math.isfinite(score) and all(score > other for other in scores if math.isfinite(other))

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save a checkpoint, after the save before is complete.

        A step that is already saved stays as it is; if the state is another one now, a warning says so.

        Args:
            step: the number of training steps done.
            state: PyTree of `jax.Array`s; it may be donated or deleted as soon as this returns.
            metrics: what was measured of this state. Without that of `best` (or with one that is not
                finite) the checkpoint counts only as one of the latest.

        Raises:
            CheckpointError: this save could not start, or the one before failed.
        """
        self.wait()
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        record = checkpoint_format.make_record(state, metrics, self._config)
        if step in self.steps():
            try:
                saved = checkpoint_format.read_record(self._path(step))
            except CheckpointError as error:
                logger.warning("%s; replacing it", error)
                self._set_aside([step])
            else:
                if saved["digests"] != record["digests"]:
                    logger.warning("checkpoint %s holds another state and stays as it is", self._path(step))
                return
        try:
            self._saving = step, checkpoint_format.write(self._path(step), state, record)
        except Exception as error:
            raise self._failed_save(step, error) from error
        self._metrics[step] = metrics

    def wait(self) -> None:
        """Waits for the save under way, then removes the checkpoints that are neither latest nor best.

        Raises:
            CheckpointError: the save failed; what was saved before it is still there.
        """
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            saving.result()
        except Exception as error:
            raise self._failed_save(step, error) from error
        if jax.process_index() == 0:
            for old in {*self.steps()[: -self._latest]} - {self.best_step()}:
                shutil.rmtree(self._path(old))
        _wait_for_all("checkpoints removed")

    def restore(
        self, abstract_state: Any, retyped: Collection[str] = (), step: int | None = None
    ) -> tuple[int, Any] | None:
        """Reads the newest whole checkpoint, or that of a given step.

        Damaged ones newer than it are named in a warning each and moved into the folder `damaged`.

        Args:
            abstract_state: PyTree of `jax.ShapeDtypeStruct`s; their shardings are those of the arrays
                returned (none: the first device), whatever they were when saved.
            retyped: paths of arrays that may have been saved in another dtype, and are cast.
            step: the step to read; None for the newest.

        Returns:
            The step and the state, bit for bit as it was saved; None where there is no checkpoint.

        Raises:
            ValueError: a checkpoint holds other arrays than `abstract_state`, or there is none of `step`.
            CheckpointError: every checkpoint is damaged, or that of `step` is.
        """
        self.wait()
        steps = self.steps()
        if step is not None:
            if step not in steps:
                raise ValueError(f"no checkpoint of step {step} in {self.folder}; there are {steps}")
            return step, checkpoint_format.read(self._path(step), abstract_state, retyped)
        damaged = {}
        for candidate in reversed(steps):
            try:
                state = checkpoint_format.read(self._path(candidate), abstract_state, retyped)
            except CheckpointError as error:
                logger.warning("%s", error)
                damaged[candidate] = str(error)
            else:
                self._set_aside(damaged)
                return candidate, state
        # They stay where they are: with the folder empty, the next run would silently start from nothing.
        if damaged:
            raise CheckpointError("no checkpoint can be read:\n" + "\n".join(damaged.values()))
        return None

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

    def _read_metrics(self, step: int) -> Mapping[str, float]:
        try:
            return checkpoint_format.read_record(self._path(step))["metrics"]
        except CheckpointError:
            return {}  # restore() is the place to complain: it knows whether the damage matters.

    def _set_aside(self, steps: Iterable[int]) -> None:
        for step in steps:
            self._metrics.pop(step, None)
        if jax.process_index() == 0:
            for step in steps:
                target = self.folder / "damaged" / str(step)
                shutil.rmtree(target, ignore_errors=True)
                target.parent.mkdir(exist_ok=True)
                self._path(step).rename(target)
        _wait_for_all("damaged checkpoints set aside")

    def _failed_save(self, step: int, error: Exception) -> CheckpointError:
        self._remove_unfinished()
        steps = self.steps()
        last = f"the last one is that of step {steps[-1]}" if steps else "there is no other"
        return CheckpointError(
            f"checkpoint {self._path(step)} could not be written: {checkpoint_format.reason(error)}; {last}"
        )

    def _remove_unfinished(self) -> None:
        if jax.process_index() == 0:
            for path in self.folder.glob("*.orbax-checkpoint-tmp*"):
                shutil.rmtree(path, ignore_errors=True)


def _wait_for_all(name: str) -> None:
    multihost_utils.sync_global_devices(name)
