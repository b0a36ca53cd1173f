"""Runs of `train.py` that are killed and resumed, beside runs that are not: in processes, while other checks go on."""

import concurrent.futures
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 900  # seconds for all of them
NAME = "killed and unbroken run"


def missing_for_whole_runs() -> list[str]:
    """What `train.py` needs and is not installed."""
    return [name for name in ("ml_collections", "tensorboardX") if importlib.util.find_spec(name) is None]


class KilledRuns:
    """Pairs of runs, one unbroken, one killed at its first checkpoint and resumed; all of them at once.

    One pair has deterministic algorithms, the other those that XLA chooses. A thread for each run watches its
    checkpoints, so that what else this process does delays no kill.

    A context manager: what still runs when it is left is killed.

    Args:
        options: of the command line.
        seconds: for all of them.
    """

    def __init__(self, options, seconds: float):
        self._seconds = seconds
        # A checkpoint so often, and many after the first: the kill must come well before the end.
        if options.quick or not options.cifar:
            self._recipe = ["--config=configs/digits.py", "--config.epochs=6", "--config.checkpoint_every_steps=4"]
            self._final = 66
        else:
            self._recipe = ["--config=configs/cifar.py", "--config.epochs=1", "--config.checkpoint_every_steps=50"]
            self._recipe.append(f"--config.data_dir={options.cifar}")
            self._final = 390
        self._kinds = _kinds(options.quick)

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._start = time.perf_counter()
        self._left = threading.Event()
        self._threads = concurrent.futures.ThreadPoolExecutor(2 * len(self._kinds))
        self._ends = {
            kind: (self._threads.submit(self._unbroken, kind), self._threads.submit(self._killed_and_resumed, kind))
            for kind in self._kinds
        }
        return self

    def __exit__(self, *_):
        self._left.set()
        self._threads.shutdown()
        self._folder.cleanup()

    def compare(self, journal, part: str) -> None:
        """Waits for all runs, and compares the arrays of their last checkpoints."""
        for kind, (unbroken, killed) in self._ends.items():
            name = f"{NAME}, algorithms {kind}"
            try:
                expected, (digests, step) = unbroken.result(), killed.result()
            except TimeoutError:
                # Where the budget is spent nothing is wrong.
                key = "failed" if journal.left() > 0 else "left_out"
                journal.add(part, name, **{key: f"the runs did not end within {self._seconds:.0f} s"})
            except RuntimeError as error:
                journal.add(part, name, failed=str(error))
            else:
                same = digests == expected
                judged = {"right": same} if kind == "deterministic" else {}
                seconds = round(time.perf_counter() - self._start)
                found = dict(same_bits=same, resumed_from_step=step, steps=self._final, all_of_them_s=seconds)
                journal.add(part, name, **judged, **found)

    def _unbroken(self, kind):
        """The digests at the end of a run that nothing interrupts."""
        code, log = self._run(kind, "unbroken", "unbroken", self._has_ended)
        if not self._has_ended(kind, "unbroken"):
            raise RuntimeError(f"the unbroken run ended with exit code {code}: {_last_lines(log)}")
        return self._digests(kind, "unbroken")

    def _killed_and_resumed(self, kind):
        """The digests at the end of a run that was killed and resumed, and the step from which it resumed."""
        code, log = self._run(kind, "killed", "killed", self._has_saved)
        if code != -signal.SIGKILL:
            raise RuntimeError(f"the run ended with exit code {code} before it was killed: {_last_lines(log)}")
        # Its process is dead: what is not there now was not there when it was killed.
        if self._has_ended(kind, "killed"):
            raise RuntimeError("the run had saved its last step before it was killed")
        code, log = self._run(kind, "killed", "resumed", self._has_ended)
        if not self._has_ended(kind, "killed"):
            raise RuntimeError(f"the resumed run ended with exit code {code}: {_last_lines(log)}")
        step = re.search(r"resuming from step (\d+)", log)
        if step is None:
            raise RuntimeError("the second process did not resume the run: its log names no step that it resumed from")
        return self._digests(kind, "killed"), int(step[1])

    def _run(self, kind, run, process_name, reached: Callable[[str, str], bool]) -> tuple[int, str]:
        """Starts a process, kills it once `reached(kind, run)`, and returns its exit code and its log."""
        log = Path(self._folder.name) / f"{kind} {process_name}.log"
        arguments = [*self._recipe, f"--workdir={self._workdir(kind, run)}", "--config.checkpoint_every_seconds=0"]
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "train.py", *arguments],
                cwd=REPOSITORY,
                env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_FLAGS": self._kinds[kind]},
                stdout=file,
                stderr=file,
            )
        try:
            while not reached(kind, run) and process.poll() is None:
                if self._left.wait(0.01) or time.perf_counter() - self._start > self._seconds:
                    raise TimeoutError
        finally:
            process.kill()
            code = process.wait()
        return code, log.read_text()

    def _has_saved(self, kind, run):
        return any(path.name.isdecimal() for path in (self._workdir(kind, run) / "checkpoints").glob("*"))

    def _has_ended(self, kind, run):
        return (self._workdir(kind, run) / "checkpoints" / str(self._final)).is_dir()

    def _digests(self, kind, run):
        from repmlp_jax.storage.checkpoint_format import read_record

        return read_record(self._workdir(kind, run) / "checkpoints" / str(self._final))["digests"]

    def _workdir(self, kind, run) -> Path:
        return Path(self._folder.name) / f"{kind} {run}"


def _kinds(quick: bool) -> dict[str, str]:
    """Names of the kinds of algorithms → XLA_FLAGS that ask for them."""
    from repmlp_jax.training.command_line import is_file_of_xla_flags, with_xla_flag

    flags = os.environ.get("XLA_FLAGS", "")
    if is_file_of_xla_flags(flags):
        return {"as the file in XLA_FLAGS says": with_xla_flag(flags, "--xla_gpu_deterministic_ops=true")}
    # On the CPU, operations have one algorithm each.
    wanted = {"deterministic": "true"} | ({} if quick else {"as XLA chooses": "false"})
    return {kind: with_xla_flag(flags, f"--xla_gpu_deterministic_ops={value}") for kind, value in wanted.items()}


def _last_lines(log: str) -> str:
    return " | ".join(line.strip() for line in log.strip().splitlines()[-3:])[-600:]
