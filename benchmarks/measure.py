"""Timing and recording, shared by the scripts beside this file."""

import datetime
import gc
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from repmlp_jax.version import versions

# What speed depends on, besides the machine.
ENVIRONMENT = ("GLIBC_TUNABLES", "XLA_FLAGS", "OPENBLAS_NUM_THREADS", "JAX_DEFAULT_MATMUL_PRECISION")
RESULTS = Path(__file__).parent / "results"


def interleaved(functions: dict[str, Callable], runs: int, *, untimed: int = 0) -> dict[str, dict]:
    """Seconds of each function, warmed up once, then run in turn so that a drift of the machine meets all of them.

    Args:
        functions: name → function without arguments, whose result is waited for.
        runs: how often each is timed.
        untimed: calls right before each timed one, where threads of the function before may still wait busily.

    Returns:
        name → median, minimum and maximum in seconds, and the number of runs.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    seconds = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            for _ in range(untimed):
                jax.block_until_ready(function())
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return {name: summary(times) for name, times in seconds.items()}


def summary(seconds: list[float]) -> dict:
    """Median and spread of several runs."""
    return dict(median=statistics.median(seconds), minimum=min(seconds), maximum=max(seconds), runs=len(seconds))


def peak_memory(function: Callable) -> int:
    """Bytes that the process holds at most while a function runs, beyond what it held before (on Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak to what is held now
    before = _status("VmRSS")
    function()
    return _status("VmHWM") - before


def matmul_rate(size: int = 2048, runs: int = 9) -> float:
    """Multiply-accumulates a second of a float32 matrix product on this machine, the best of several runs."""
    matrix = jax.numpy.ones((size, size), jax.numpy.float32)
    product = jax.jit(lambda a, b: a @ b)
    return size**3 / interleaved({"product": lambda: product(matrix, matrix)}, runs)["product"]["minimum"]


def memory_bandwidth(megabytes: int = 512, runs: int = 9) -> float:
    """Bytes read and written a second when an array that fits in no cache is scaled in place, the best of the runs."""
    array = jax.numpy.ones(megabytes * 2**18, jax.numpy.float32)
    # In place: to be given fresh memory from the system takes longer than the scaling.
    scale = jax.jit(lambda array: array * 0.5, donate_argnums=0)

    def again():
        nonlocal array
        array = scale(array)
        return array

    return 2 * array.nbytes / interleaved({"scale": again}, runs)["scale"]["minimum"]


def record(name: str, measured: dict) -> Path:
    """Writes what was measured, with the machine, the versions, the command and the date, to results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**measured, "provenance": provenance()}, indent=1) + "\n")
    return path


def provenance() -> dict:
    """Where and with what a measurement was made."""
    devices = jax.devices()
    packages = ["jaxlib", *(["torch"] if "torch" in sys.modules else [])]
    others = {name: importlib.metadata.version(name) for name in packages} | {"python": platform.python_version()}
    return dict(
        date=datetime.date.today().isoformat(),
        command=shlex.join(["python", *(os.path.relpath(part) if part == sys.argv[0] else part for part in sys.argv)]),
        machine=dict(processor=_processor(), cores=os.cpu_count(), system=platform.system()),
        devices=f"{len(devices)} × {devices[0].device_kind} ({devices[0].platform})",
        environment={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        versions=versions() | others,
    )


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
