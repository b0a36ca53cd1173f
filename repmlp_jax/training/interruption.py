"""Asking a run to stop: SIGTERM, as schedulers and preempted machines send it."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """A context in which SIGTERM is noted instead of killing the process.

    With several processes JAX's own notice is used, for which all of them agree on the step to stop at.
    """

    signal = signal.SIGTERM

    def __enter__(self):
        self._asked = threading.Event()
        self._handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(self.signal, lambda *_: self._asked.set())
        return self

    def __exit__(self, *_):
        if self._handles:
            signal.signal(self.signal, self._previous)

    def requested(self, step: int) -> bool:
        """Whether to stop at this step, the number of steps done; all processes ask at the same steps."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked.is_set()
