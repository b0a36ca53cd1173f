"""A trace of some training steps, to be read in TensorBoard, XProf or Perfetto."""

import contextlib
from pathlib import Path

import jax


class Profiler:
    """A context that traces the first steps of a run after the first call, which compiles; each is a call of its own.

    Args:
        folder: where the trace is written.
        steps: how many steps to trace; 0: none.
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

    def limit(self, count: int) -> int:
        """How many steps to do in the next call, of `count` that could be done."""
        return 1 if self._remaining else count

    @contextlib.contextmanager
    def trace(self, step: int):
        """A context in which the step after `step` is done and waited for."""
        if not (self._remaining and self._is_compiled):
            yield
            self._is_compiled = True
            return
        if not self._is_tracing:
            jax.profiler.start_trace(self._folder)
            self._is_tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            yield
        self._remaining -= 1
        if not self._remaining:
            self._stop()

    def _stop(self):
        if self._is_tracing:
            self._is_tracing = False
            jax.profiler.stop_trace()
