"""Programs are compiled beside each other, and timed one after another, alone."""

import concurrent.futures
import statistics
import time
from collections.abc import Callable

import jax

from on_accelerator.journal import one_line

AT_ONCE = 10


def compiled(functions: dict[str, Callable], journal, part: str) -> dict[str, Callable]:
    """Calls each function once, all in threads, so that they are compiled; those that fail or are late are named."""
    if len(functions) > AT_ONCE:
        raise ValueError(f"{len(functions)} programs are to be compiled at once: at most {AT_ONCE}")

    def first_call(function):
        start = time.perf_counter()
        jax.block_until_ready(function())
        return time.perf_counter() - start

    pool = concurrent.futures.ThreadPoolExecutor(AT_ONCE)
    calls = {name: pool.submit(first_call, function) for name, function in functions.items()}
    done, seconds = {}, {}
    for name, call in calls.items():
        try:
            seconds[name] = call.result(timeout=max(journal.left(), 0))
        except concurrent.futures.TimeoutError:
            journal.add(part, str(name), left_out="it was not compiled in time")
        except Exception as error:  # of one program that is too large, say; the others are measured all the same
            journal.add(part, str(name), failed=one_line(error))
        else:
            done[name] = functions[name]
    # A compilation cannot be stopped; one that is late has used up the time of whatever would follow.
    pool.shutdown(wait=False, cancel_futures=True)
    journal.add(part, f"first calls of {len(done)} programs at once", longest_s=max(seconds.values(), default=0.0))
    return done


def timed(function: Callable, *, runs: int, calls: int, repeats: int = 1) -> dict:
    """Milliseconds of a call: the median and the range of several runs, each of so many calls that follow each other.

    The host waits after the last call of a run, so that what it takes to start one is hidden where the device takes
    longer, as in use. A call that does `repeats` times what is measured counts as so many.
    """
    milliseconds = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(calls):
            result = function()
        jax.block_until_ready(result)
        milliseconds.append((time.perf_counter() - start) * 1e3 / calls / repeats)
    return dict(
        median_ms=statistics.median(milliseconds),
        minimum_ms=min(milliseconds),
        maximum_ms=max(milliseconds),
        runs=runs,
        calls=calls,
        repeats=repeats,
    )
