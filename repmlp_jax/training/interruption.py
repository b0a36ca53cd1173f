"""Requests to stop a run: SIGTERM of schedulers and preempted machines, and SIGINT of Ctrl-C."""

import os
import signal
import threading

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
    """A context in which SIGTERM and SIGINT set a flag instead of ending the process; a second SIGINT ends it.

    Several processes use JAX's own preemption notice, so that all of them stop at the same step.

    Attributes:
        signal: the signal that came.
    """

    signal = signal.SIGTERM

    def __enter__(self):
        self._asked = threading.Event()
        self._looks = 0
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            if jax.process_count() == 1:
                self._previous = {number: signal.signal(number, self._ask) for number in SIGNALS}
            else:  # JAX gives notice of SIGTERM, which it handles itself.
                self._previous = {signal.SIGINT: signal.signal(signal.SIGINT, self._pass_on)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop now; every process must make every call."""
        if jax.process_count() > 1:
            # The processes agree on a future number of this counter, so it must not skip any, unlike the step.
            self._looks += 1
            return multihost_utils.reached_preemption_sync_point(self._looks)
        return self._asked.is_set()

    def _ask(self, number, _):
        self.signal = signal.Signals(number)
        self._asked.set()
        if number == signal.SIGINT:
            _tell_of_ctrl_c()

    def _pass_on(self, *_):
        self.signal = signal.SIGINT
        _tell_of_ctrl_c()
        signal.raise_signal(signal.SIGTERM)


def _tell_of_ctrl_c():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Not by the log or print, which may be in the middle of a line of their own.
    os.write(2, b"\nstopping after this step; Ctrl-C again stops without saving\n")
