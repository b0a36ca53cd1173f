"""What was found, a line of JSON each as it comes, and how much of the time there is has been spent."""

import json
import os
import time
from pathlib import Path

import jax
from measure import provenance


class Journal:
    """Appends results to a file and prints them; a run that is killed leaves all that it had found.

    Args:
        path: the file of JSON lines; its parents are made, and what is in it stays.
        budget: seconds from the start of the process on; what does not fit is named.
    """

    def __init__(self, path: Path, budget: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._budget = budget
        self._start = time.perf_counter()
        self._provenance = provenance()

    def add(self, part: str, name: str, **found) -> None:
        """Writes a result, and prints it."""
        line = {"part": part, "name": name, **found, "after_seconds": round(self.spent(), 1)}
        self._file.write(json.dumps(line | {"provenance": self._provenance}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        shown = "  ".join(f"{key} {_short(value)}" for key, value in found.items())
        print(f"[{self.spent():5.0f} s] {part:7} {name:44} {shown}", flush=True)

    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget - self.spent()

    def has_time(self, part: str, name: str, seconds: float) -> bool:
        """Whether so many seconds are left; if not, says that this is left out."""
        if self.left() >= seconds:
            return True
        self.add(part, name, left_out=f"it needs some {seconds:.0f} s, and {max(self.left(), 0):.0f} s are left")
        return False


def device_kind() -> str:
    """The name of the device that is measured."""
    return jax.devices()[0].device_kind


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + "}"
    return str(value)
