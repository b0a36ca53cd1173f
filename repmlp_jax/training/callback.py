"""A function of the caller that gets the rows of metrics."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

OnRow = Callable[[dict[str, Any]], object]


def error_of(on_row: OnRow | None, row: dict[str, Any]) -> BaseException | None:
    """Calls `on_row(row)` in process 0, and returns its error in all processes, so that all can save before they raise.

    Every process makes this call. The others return a RuntimeError in place of the error of process 0.
    """
    error: BaseException | None = None
    if on_row is not None and jax.process_index() == 0:
        try:
            on_row(row)
        except BaseException as raised:
            error = raised
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.asarray(error is not None))
        if failed and error is None:
            error = RuntimeError("on_row raised an error in process 0: see there")
    return error
