"""The checkpoints of a training run: it keeps the latest and the best, and reads the newest complete one."""

import logging
import math
import shutil
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from repmlp_jax.local_path import local_path
from repmlp_jax.storage import checkpoint_format
from repmlp_jax.storage.checkpoint_format import CheckpointError
from repmlp_jax.storage.partial import sync, sync_tree

logger = logging.getLogger("repmlp_jax")


class Checkpoints:
    """A folder of checkpoints, each a folder named by its step.

    It is a context manager; its exit waits for the save in progress. With several processes, every process makes every
    call, in the same order, and sees the same file system.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        latest: int = 2,
        best: str = "test_accuracy",
        config: Mapping[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
    ):
        """Creates the folder if necessary, and removes unfinished checkpoints of a killed run.

        Args:
            folder: folder of the checkpoints.
            latest: number of the newest checkpoints to keep, at least 1.
            best: the metric, higher is better, whose best checkpoint is kept as well.
            config: configuration of the run, saved in each checkpoint as JSON.
            environment: what the run's numbers depend on besides, saved in each checkpoint as JSON.

        Raises:
            ValueError: if `latest` is below 1; as `read_records`.
        """
        if latest < 1:
            raise ValueError(f"latest must be at least 1, got {latest}")
        self.folder = local_path(folder).absolute()
        self._latest = latest
        self._best = best
        self._made_with = dict(config=config or {}, environment=environment or {})
        self._saving: tuple[int, Any] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        _wait_for_all("checkpoints opened")
        # restore() reports the damage of a checkpoint without a record, if it matters.
        self._metrics: dict[int, Mapping[str, float]] = {
            step: record["metrics"] if record else {} for step, record in read_records(self.folder).items()
        }

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.wait()

    def steps(self) -> list[int]:
        """The steps of the finished checkpoints, in ascending order."""
        return sorted(int(path.name) for path in self.folder.iterdir() if _is_checkpoint(path))

    def best_step(self) -> int | None:
        """The step with the highest metric `best`, the earliest of equals; None if none was measured."""
        scores = self.scores()
        return max((step for step in self.steps() if step in scores), key=lambda step: scores[step], default=None)

    def scores(self, others: Mapping[int, Mapping[str, float]] | None = None) -> dict[int, float]:
        """The finite metrics `best` of all states saved so far and of `others`, in ascending order of the steps."""
        metrics = {**(others or {}), **self._metrics}
        scores = {step: metrics[step].get(self._best, math.nan) for step in sorted(metrics)}
        return {step: score for step, score in scores.items() if math.isfinite(score)}

    def would_be_best(self, metrics: Mapping[str, float], *others: Mapping[str, float]) -> bool:
        """Whether the metric `best` of a state is higher than in every saved state and in `others`."""
        score, *scores = (one.get(self._best, math.nan) for one in (metrics, *others, *self._metrics.values()))
        return math.isfinite(score) and all(score > other for other in scores if math.isfinite(other))

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Starts to save a checkpoint, after the previous save is complete.

        A step that is already saved stays as it is; a warning says so if its state differs.

        Args:
            step: number of completed training steps.
            state: PyTree of `jax.Array`s; it may be donated or deleted as soon as this returns.
            metrics: of this state. Without a finite `best` the checkpoint is kept only as one of the latest.

        Raises:
            CheckpointError: if this save could not start, or the previous one failed.
        """
        self.wait()
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        record = checkpoint_format.make_record(step, state, metrics, **self._made_with)
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
        """Waits for the save in progress, then removes the checkpoints that are neither latest nor best.

        Raises:
            CheckpointError: if the save failed; earlier checkpoints are kept.
        """
        if self._saving is None:
            return
        (step, saving), self._saving = self._saving, None
        try:
            saving.result()
            if jax.process_index() == 0:
                # Orbax syncs the arrays, not its metadata; before it is on the disk, no older checkpoint is removed.
                sync_tree(self._path(step))
                sync(self.folder)
        except Exception as error:
            raise self._failed_save(step, error) from error
        if jax.process_index() == 0:
            for old in {*self.steps()[: -self._latest]} - {self.best_step()}:
                shutil.rmtree(self._path(old))
        _wait_for_all("checkpoints removed")

    def restore(
        self, abstract_state: Any, step: int | None = None, *, retyped: Collection[str] = ()
    ) -> tuple[int, Any] | None:
        """Reads the newest complete checkpoint, or that of a given step.

        Newer checkpoints that are damaged, or hold NaN or infinite values, are moved into the folder `damaged`, each
        with a warning.

        Args:
            abstract_state: as of `checkpoint_format.read`.
            step: the step to read; None: the newest.
            retyped: paths of arrays that may have been saved in another dtype and are cast.

        Returns:
            The step and the state, bit for bit as it was saved; None if there is no checkpoint.

        Raises:
            ValueError: if a checkpoint holds other arrays than `abstract_state`, or there is none of `step`.
            CheckpointError: if every checkpoint, or that of `step`, is damaged.
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
        # Damaged checkpoints stay in place: with an empty folder, the next run would silently start from step 0.
        if damaged:
            raise CheckpointError("no checkpoint can be read:\n" + "\n".join(damaged.values()))
        return None

    def _path(self, step: int) -> Path:
        return self.folder / str(step)

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


def read_records(folder: Path) -> dict[int, checkpoint_format.Record | None]:
    """Reads the record of every checkpoint in a folder, in ascending order of the steps; None: it is damaged.

    Raises:
        ValueError: if something in the folder has a number for a name, but is not the checkpoint of that step.
    """
    folder = folder.absolute()  # Orbax warns of others.
    numbered = [path for path in sorted(folder.glob("*")) if path.name.isdecimal()]
    strangers = [
        f"{path.name} is {'not a name of a checkpoint' if path.is_dir() else 'not a folder'}"
        for path in numbered
        if not _is_checkpoint(path)
    ]
    records: dict[int, checkpoint_format.Record | None] = {}
    for step in sorted(int(path.name) for path in numbered if _is_checkpoint(path)):
        try:
            record = records[step] = checkpoint_format.read_record(folder / str(step))
        except CheckpointError:
            records[step] = None
        else:
            if record["step"] not in (None, step):
                strangers.append(f"{step} holds step {record['step']}")
    if strangers:
        raise ValueError(f"{folder} holds what no run saved under its name: {'; '.join(strangers)}. Move it elsewhere")
    return records


def _is_checkpoint(path: Path) -> bool:
    """Whether it is a folder named by a step, as `str` writes it: neither 007 nor in other digits."""
    return path.name.isdecimal() and path.name == str(int(path.name)) and path.is_dir()


def _wait_for_all(name: str) -> None:
    multihost_utils.sync_global_devices(name)
