"""Asking a run to stop: SIGTERM, as schedulers and preempted machines send it."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """A context in which SIGTERM is noted instead of killing the process.

    With several processes JAX's own notice is used, for which all of them agree on the moment to stop.
    """

    signal = signal.SIGTERM

    def __enter__(self):
        self._asked = threading.Event()
        self._looks = 0
        self._handles = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._previous = signal.signal(self.signal, lambda *_: self._asked.set())
        return self

    def __exit__(self, *_):
        if self._handles:
            signal.signal(self.signal, self._previous)

    def requested(self) -> bool:
        """Whether to stop now; all processes ask equally often."""
        if jax.process_count() > 1:
            # They agree on the next number after those that each has come to, so none may be left out, as steps are.
            self._looks += 1
            return multihost_utils.reached_preemption_sync_point(self._looks)
        return self._asked.is_set()
