"""A trace of some training steps, to be read in TensorBoard, XProf or Perfetto."""

import contextlib
from pathlib import Path

import jax


class Profiler:
    """A context in which `trace` traces calls of the training steps, after the first, which compiles.

    Args:
        folder: where the trace is written.
        steps: calls are traced until they have done so many steps; 0: none is.
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
        """A context in which `count` steps from `step` on are done and waited for."""
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
