"""SIGTERM, which schedulers and preempted machines send to ask a run to stop."""

import signal
import threading

import jax
from jax.experimental import multihost_utils


class Interruption:
    """A context in which SIGTERM sets a flag instead of killing the process.

    Several processes use JAX's own preemption notice, so that all of them stop at the same step.
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
        """Whether to stop now; every process must make every call."""
        if jax.process_count() > 1:
            # The processes agree on a future number of this counter, so it must not skip any, unlike the step.
            self._looks += 1
            return multihost_utils.reached_preemption_sync_point(self._looks)
        return self._asked.is_set()
