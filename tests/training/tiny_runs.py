"""Runs of the tiny recipe by `train.py`, in processes that can be killed."""

import itertools
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import patience

REPOSITORY = Path(__file__).parents[2]
WITHOUT_TORCH = Path(__file__).with_name("without_torch")


def start(workdir, *arguments, processes: int = 1, devices: int = 1, each=()) -> list[subprocess.Popen]:
    """Starts the processes of a run, each with so many virtual devices, and with arguments of its own by `each`."""
    together = [()]
    if processes > 1:
        flags = ("--distributed", f"--coordinator_address={_free_address()}", f"--num_processes={processes}")
        together = [(*flags, f"--process_id={process}") for process in range(processes)]
    paths = filter(None, (str(WITHOUT_TORCH), os.environ.get("PYTHONPATH")))
    environment = dict(PYTHONPATH=os.pathsep.join(paths))
    command = ["train.py", "--config=tests/training/tiny_recipe.py", f"--workdir={workdir}", *arguments]
    return [
        _started(*command, *flags, *own, devices=devices, environment=environment)
        for flags, own in itertools.zip_longest(together, each, fillvalue=())
    ]


def undisturbed_and_killed(folder: Path, *arguments) -> tuple[Path, Path, str]:
    """The folders of a run of two processes and of one that was killed and resumed, and what the first printed."""
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    codes, said = finish(start(undisturbed, *arguments, processes=2))
    assert codes == [0, 0], said
    processes = start(killed, *arguments, processes=2)
    wait_for_checkpoint(killed, 5, processes)
    processes[1].kill()
    # The one that is left cannot go on alone; what started them ends it.
    time.sleep(1)
    processes[0].kill()
    finish(processes)
    codes, outputs = finish(start(killed, *arguments, processes=2))
    assert codes == [0, 0], outputs
    assert "resuming from step" in outputs[0]
    assert (killed / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()
    return undisturbed, killed, said[0]


def start_code(code: str, *arguments, processes: int, devices: int) -> list[subprocess.Popen]:
    """Starts processes that run code, whose arguments are the address where they meet, their number, and others."""
    address = _free_address()
    return [_started("-c", code, address, str(number), *arguments, devices=devices) for number in range(processes)]


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def _started(*arguments, devices, environment=None):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        env=os.environ | dict(JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES=str(devices)) | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    """Waits for the processes, and returns the exit code and the output of each."""
    try:
        outputs = [process.communicate(timeout=patience.seconds(300))[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def run(workdir, *arguments) -> tuple[int, str]:
    """Runs a process to its end, and returns its exit code and output."""
    (code,), (output,) = finish(start(workdir, *arguments))
    return code, output


def saved_steps(workdir) -> list[int]:
    """The steps of the checkpoints that are there."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal())


def wait_until(condition, processes: list[subprocess.Popen]) -> None:
    """Waits for something that the processes do."""

    def is_met():
        if condition():
            return True
        assert all(process.poll() is None for process in processes), finish(processes)
        return False

    try:
        patience.wait_until(is_met, "the processes go on without doing it")
    except AssertionError:
        for process in processes:
            process.kill()
        raise


def wait_for_checkpoint(workdir, step: int, processes: list[subprocess.Popen]) -> None:
    """Waits for a checkpoint of that step or a later one."""
    wait_until(lambda: saved_steps(workdir) and saved_steps(workdir)[-1] >= step, processes)
