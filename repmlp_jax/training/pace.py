"""The number of training steps between two checks of the loss."""

import contextlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

SECONDS_BETWEEN_LOOKS = 1.0


class Pace:
    """Chooses the number of steps per call from the time of a step; all processes choose the same.

    Args:
        steps_per_call: the number of steps; 0: one step at first, then as many as take about a second.
    """

    def __init__(self, steps_per_call: int):
        self.steps = steps_per_call or 1
        self.seconds_per_step = float("nan")
        self._calls = 0
        self._fixed = bool(steps_per_call)

    @contextlib.contextmanager
    def timed(self, count: int):
        """A context that runs `count` steps and waits for them."""
        start = time.perf_counter()
        yield
        self.seconds_per_step = (time.perf_counter() - start) / count
        self._calls += 1
        # The first call compiles.
        if self._calls == 2 and not self._fixed:
            steps = np.int32(max(1, round(SECONDS_BETWEEN_LOOKS / self.seconds_per_step)))
            self.steps = int(multihost_utils.broadcast_one_to_all(steps)) if jax.process_count() > 1 else int(steps)
