"""A trace of some training steps, for TensorBoard, XProf or Perfetto."""

import contextlib
from pathlib import Path

import jax


class Profiler:
    """A context in which `trace` traces the calls after the first, which compiles.

    Args:
        folder: folder that the trace is written to.
        steps: calls are traced until they have run this many steps; 0: no trace.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder = folder
        self._remaining = steps
        self._is_compiled = False
        self._is_tracing = False

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    @contextlib.contextmanager
    def trace(self, step: int, count: int):
        """A context that runs `count` steps, starting at `step`, and waits for them."""
        if self._remaining <= 0 or not self._is_compiled:
            yield
            self._is_compiled = True
            return
        if not self._is_tracing:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield
        self._remaining -= count
        if self._remaining <= 0:
            self._stop()

    def _stop(self):
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
