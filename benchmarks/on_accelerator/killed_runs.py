"""Runs of `train.py` that are killed and resumed, beside runs that are not: in processes, while other checks go on."""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 300  # seconds for all of them


def missing_for_whole_runs() -> list[str]:
    """What `train.py` needs and is not installed."""
    return [name for name in ("ml_collections", "tensorboardX") if importlib.util.find_spec(name) is None]


class KilledRuns:
    """Four runs at once, with the compiler's choice of algorithms and with deterministic ones, unbroken and killed.

    A context manager: what still runs when it is left is killed.

    Args:
        options: of the command line.
    """

    def __init__(self, options):
        self._folder = tempfile.TemporaryDirectory()
        if options.quick or not options.cifar:
            self._recipe = ["--config=configs/digits.py", "--config.epochs=2", "--config.checkpoint_every_steps=4"]
            self._final = 22
        else:
            self._recipe = ["--config=configs/cifar.py", "--config.epochs=1", "--config.checkpoint_every_steps=100"]
            self._recipe.append(f"--config.data_dir={Path(options.cifar).absolute()}")
            self._final = 390
        # Of which algorithm an operation takes, the CPU has no choice.
        self._kinds = (
            {"deterministic": "true"} if options.quick else {"deterministic": "true", "as XLA chooses": "false"}
        )
        self._processes: dict[tuple[str, str], subprocess.Popen] = {}

    def __enter__(self):
        self._start = time.perf_counter()
        for kind in self._kinds:
            for run in ("unbroken", "killed"):
                self._begin(kind, run)
        return self

    def __exit__(self, *_):
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._folder.cleanup()

    def compare(self, journal, part: str) -> bool:
        """Waits for all runs, kills and resumes those that are to be, and compares the arrays of their ends."""
        held = {}
        try:
            for kind in self._kinds:
                self._kill_at(kind, "killed", self._has_saved)
                self._begin(kind, "killed")
            for kind in self._kinds:
                for run in ("unbroken", "killed"):
                    self._kill_at(kind, run, self._has_ended)
                held[kind] = self._digests(kind, "killed") == self._digests(kind, "unbroken")
        except RuntimeError as error:
            journal.add(part, "killed and unbroken run", failed=str(error))
            return False
        for kind, same in held.items():
            journal.add(
                part,
                f"killed and unbroken run, algorithms {kind}",
                same_bits=same,
                steps=self._final,
                all_of_them_s=round(time.perf_counter() - self._start),
            )
        return held["deterministic"]

    def _begin(self, kind, run):
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops={self._kinds[kind]}".strip(),
        }
        arguments = [*self._recipe, f"--workdir={self._workdir(kind, run)}", "--config.checkpoint_every_seconds=0"]
        with (self._workdir(kind, run).with_suffix(".log")).open("a") as log:
            self._processes[kind, run] = subprocess.Popen(
                [sys.executable, "train.py", *arguments], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
            )

    def _kill_at(self, kind, run, condition):
        process = self._processes[kind, run]
        while not condition(kind, run):
            if process.poll() not in (None, 0) or time.perf_counter() - self._start > PATIENCE:
                log = self._workdir(kind, run).with_suffix(".log").read_text()
                raise RuntimeError(f"the {run} run ended with {process.poll()}, or takes too long:\n{log[-2000:]}")
            time.sleep(0.02)
        process.kill()
        process.wait()

    def _has_saved(self, kind, run):
        return any(path.name.isdecimal() for path in (self._workdir(kind, run) / "checkpoints").glob("*"))

    def _has_ended(self, kind, run):
        return (self._workdir(kind, run) / "checkpoints" / str(self._final)).is_dir()

    def _digests(self, kind, run):
        from repmlp_jax.storage.checkpoint_format import read_record

        return read_record(self._workdir(kind, run) / "checkpoints" / str(self._final))["digests"]

    def _workdir(self, kind, run) -> Path:
        return Path(self._folder.name) / f"{kind} {run}"
