"""What was found, a line of JSON each as it comes, and how much of the time there is has been spent."""

import contextlib
import json
import os
import time
import traceback
from pathlib import Path

import jax
from measure import provenance

REPOSITORY = str(Path(__file__).resolve().parents[2])


class Journal:
    """Appends results to a file and prints them; a run that is killed leaves all that it had found.

    Args:
        path: the file of JSON lines; its parents are made, and what is in it stays.
        budget: seconds from now on; what does not fit is named.
    """

    def __init__(self, path: Path, budget: float):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")
        self._budget = budget
        self._start = time.perf_counter()
        self._provenance = provenance()
        self._checks: list[bool] = []
        self._failed = self._left_out = 0

    def add(self, part: str, name: str, **found) -> None:
        """Writes a result, and prints it.

        Args:
            part: that it belongs to.
            name: of what was checked or measured.
            found: any values. Three are counted: `right`, whether a check holds; `failed`, what went wrong; `left_out`,
                why something was not done.
        """
        if "right" in found:
            self._checks.append(found["right"])
        self._failed += "failed" in found
        self._left_out += "left_out" in found
        line = {"part": part, "name": name, **found, "after_seconds": round(self.spent(), 1)}
        self._file.write(json.dumps(line | {"provenance": self._provenance}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        shown = "  ".join(f"{key} {_short(value)}" for key, value in found.items())
        print(f"[{self.spent():5.0f} s] {part:7} {name:44} {shown}", flush=True)

    @contextlib.contextmanager
    def attempt(self, part: str, name: str):
        """A context whose errors become a line; what follows it is done all the same."""
        try:
            yield
        except Exception as error:
            self.add(part, name, failed=one_line(error))

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

    def all_right(self) -> bool:
        """Whether every check that ran holds, and nothing failed."""
        return all(self._checks) and not self._failed

    def summary(self) -> str:
        """How many checks hold, and how much failed or was left out, in one line."""
        number, wrong = len(self._checks), self._checks.count(False)
        if not number:
            parts = ["nothing was checked"]
        elif wrong:
            parts = [f"{wrong} of {number} checks do not hold"]
        else:
            parts = [f"{number} checks hold" if self._failed else f"all checks hold ({number})"]
        parts += [f"{self._failed} failed"] * bool(self._failed)
        parts += [f"{self._left_out} left out"] * bool(self._left_out)
        return ", ".join(parts)


def one_line(error: Exception) -> str:
    """An error with its type, the start of its message, and the line of this checkout where it came up."""
    message = (str(error).strip().splitlines() or [""])[0][:200]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(REPOSITORY)]
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {message}{place}"


def device_kind() -> str:
    """The name of the device that is measured."""
    return jax.devices()[0].device_kind


def _short(value) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} {_short(item)}" for key, item in value.items()) + "}"
    return str(value)
