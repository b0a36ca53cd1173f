"""How long tests wait for what others do.

The limits are for a quiet machine. Where more is going on, the variable REPMLP_JAX_PATIENCE stretches all of them: 3
makes each three times as long.
"""

import os
import time

PATIENCE = float(os.environ.get("REPMLP_JAX_PATIENCE", "1"))


def seconds(limit: float) -> float:
    """A time limit that is meant for a quiet machine, for this one."""
    return PATIENCE * limit


def wait_until(condition, otherwise: str, limit: float = 300):
    """Waits until the condition holds; after the limit the test fails, and says what would be otherwise."""
    end = time.monotonic() + seconds(limit)
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.01)
