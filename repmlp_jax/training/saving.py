"""The times at which a state is saved; a new best state is held in between."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from repmlp_jax.storage.checkpoints import Checkpoints


class Saving:
    """Saves the states that a run offers, at least `seconds` apart.

    A new best state in between is held on the devices and saved before the next one. A run that is killed before that
    resumes from the checkpoint before and reaches the same state. With several processes, every process makes every
    call, and the clock of process 0 decides.

    Args:
        checkpoints: of the run.
        seconds: least time between two saves; 0: every offered state is saved.
    """

    def __init__(self, checkpoints: Checkpoints, seconds: float):
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._saved_at = time.monotonic()
        self._held: tuple[int, Any, Mapping[str, float]] | None = None
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))

    def offer(self, step: int, state: Any, scores: Mapping[str, float], *, must: bool = False) -> None:
        """Saves a state if a save is due or `must` is set; otherwise holds it if it is the best so far.

        Args:
            step: number of completed training steps.
            state: PyTree of `jax.Array`s; it may be donated or deleted as soon as this returns.
            scores: of the state; empty if it was not evaluated.
            must: save the state in any case.
        """
        if must or self._is_time():
            if self._held and self._checkpoints.would_be_best(scores, self._held[2]):
                self._held = None
            self.save_held()
            self._checkpoints.save(step, state, scores)
            self._saved_at = time.monotonic()
        elif self._checkpoints.would_be_best(scores, *([self._held[2]] if self._held else [])):
            self._held = step, self._copy(state), scores

    def steps_since_best(self, step: int, scores: Mapping[str, float] | None = None) -> int:
        """The number of steps since the best state so far, the earliest of equals; 0 if this one was not evaluated.

        Args:
            step: of a state, which was saved or has these scores.
            scores: of a state that is not yet offered.
        """
        others = {step: scores or {}} | ({self._held[0]: self._held[2]} if self._held else {})
        found = self._checkpoints.scores(others)
        return step - max(found, key=lambda step: found[step]) if step in found else 0

    def save_held(self) -> None:
        """Saves the state that is held, if there is one."""
        if self._held is not None:
            held, self._held = self._held, None
            self._checkpoints.save(*held)

    def _is_time(self) -> bool:
        is_time = time.monotonic() - self._saved_at >= self._seconds
        if jax.process_count() > 1:
            is_time = bool(multihost_utils.broadcast_one_to_all(np.asarray(is_time)))
        return is_time
