"""Batches that the host reads and prepares while the devices compute.

A batch depends only on the seed and its number, not on the number of worker processes or training processes, nor on the
batch at which the stream was opened. So a checkpoint needs only the training step to resume a stream.
"""

import atexit
import logging
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import cv2
import grain
import numpy as np
from absl import flags

from repmlp_jax.fusing.arguments import whole_number

logger = logging.getLogger("repmlp_jax")

ATTEMPTS = 100  # examples tried for one place in a batch; more damaged ones in a row are a systematic error

# Without worker processes, threads prepare batches while the devices compute; decoding releases Python's lock.
THREADS = 2
BATCHES_AHEAD = 2  # of each worker process, or of all threads together

Example = dict[str, Any]


class BadExample(ValueError):  # noqa: N818 - the stream decides whether it is an error
    """Raised by a transform for an example that cannot be used, such as a picture that cannot be decoded."""


@runtime_checkable
class Source(Protocol):
    """Examples with random access, like `tfds.data_source`; worker processes need it to be picklable."""

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> Any:
        """The example at an index from 0."""


class Stream(Iterator[Example]):
    """An iterator of batches, which owns the processes and threads that prepare them.

    `close`, the end of a `with` block, the garbage collector and the exit of Python end these. With worker processes
    the arrays are in shared memory, which is freed with the array.
    """

    def __init__(self, batches: Iterator[Example]):
        self._open = [batches]
        self._end = weakref.finalize(self, _close, self._open)
        # Grain's own clean-up would run after multiprocessing has closed the resources it needs.
        atexit.register(self._end)

    def __next__(self) -> Example:
        if not self._open:
            raise ValueError("the stream is closed")
        return next(self._open[0])

    def close(self):
        """Ends the processes and threads; no more batches can be read."""
        self._end()
        atexit.unregister(self._end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _close(opened: list):
    # Grain's iterators log errors if they are still open when Python shuts down.
    opened.pop().close()


def make_stream(
    source: Source,
    transform: Callable[[Any, np.random.Generator], Example],
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """An endless stream of this process's parts of training batches.

    Every epoch has its own order, drawn from the seed. If the last examples of an epoch do not fill a batch, the first
    examples of the next epoch complete it, so all examples are equally frequent. The concatenated parts of all
    processes are the batch that a single process would read.

    If `transform` raises `BadExample` for an example, the next valid example of the source always replaces it, and the
    log names it.

    Args:
        source: the examples.
        transform: `(example, random) → arrays`, of the same shapes for all examples. All randomness must come from
            `random`, which differs at each place in the stream. Worker processes need it to be picklable.
        batch_size: examples of a batch, over all processes.
        seed: of the order and of `random`, from 0 to 2³² - 1.
        start: number of the first batch, from 0.
        workers: worker processes of each training process; 0: threads of this process. A script with workers needs
            `if __name__ == "__main__":`, since they import it again.
        process_index: index of the part that this process reads.
        process_count: number of training processes.

    Returns:
        An iterator of name → array (batch_size / process_count, …). The entry "skipped" holds for each place the number
        of damaged examples before the one used. It raises BadExample if 100 examples in a row are damaged, and all
        other errors of `transform`; a ValueError names the example.

    Raises:
        TypeError: if a number is not whole, `transform` is not a function, or the source has no random access.
        ValueError: if a number is out of range, the source is empty, or the batch cannot be split evenly.
    """
    part = _part(source, transform, batch_size, process_index, process_count)
    numbers = dict(start=start, workers=workers, seed=seed)
    start, workers, seed = (whole_number(name, number) for name, number in numbers.items())
    if seed >= 2**32:
        raise ValueError(f"seed={seed} must not be below 0 or above {2**32 - 1}")

    def prepare(index, random):
        return _first_sound(source, transform, index, random)

    # Grain computes lengths in float64, which are not exact for its endless repetition.
    epochs = 2**52 // len(source)
    places = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
    # Parts are cut after all random draws, so these do not depend on the number of processes.
    parts = places.random_map(prepare).batch(part)[process_index + start * process_count :: process_count]
    return Stream(_iterate(parts, workers))


def evaluation_stream(
    source: Source,
    transform: Callable[[Any], Example],
    *,
    batch_size: int,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Stream:
    """A stream of this process's parts of batches with every example exactly once, in the source's order.

    Args:
        source: the examples.
        transform: `example → arrays`, of the same shapes for all examples. Worker processes need it to be picklable.
        batch_size: as of `make_stream`.
        workers: as of `make_stream`.
        process_index: as of `make_stream`.
        process_count: as of `make_stream`.

    Returns:
        An iterator of name → array (batch_size / process_count, …), with the same number of batches in every process.
        The entry "mask", bool (batch_size / process_count,), is False where the last example pads the last batch. It
        raises all errors of `transform`, including BadExample, since a missing example would change the score; a
        ValueError names the example.

    Raises:
        TypeError: if a number is not whole, `transform` is not a function, or the source has no random access.
        ValueError: if a number is out of range, the source is empty, or the batch cannot be split evenly.
    """
    part = _part(source, transform, batch_size, process_index, process_count)
    workers = whole_number("workers", workers)
    last = len(source) - 1

    def prepare(place):
        index = min(place, last)
        try:
            return {**transform(source[index]), "mask": np.bool_(place <= last)}
        except BadExample as error:
            raise BadExample(f"example {index} cannot be evaluated: {error}") from error
        except ValueError as error:
            raise ValueError(f"example {index}: {error}") from error

    places = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size)
    return Stream(_iterate(places.map(prepare).batch(part)[process_index::process_count], workers))


def _part(source: Source, transform: Callable, batch_size: int, process_index: int, process_count: int) -> int:
    """The number of examples of a batch that this process reads."""
    if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
        raise TypeError(f"source must have a length and examples by index, and a {type(source).__name__} does not")
    if not callable(transform):
        raise TypeError(f"transform must be a function of an example, not {transform!r}")
    numbers = dict(batch_size=batch_size, process_index=process_index, process_count=process_count)
    for name, number in numbers.items():
        whole_number(name, number)
    if not len(source):
        raise ValueError("the source holds no example")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} must be below process_count={process_count}")
    if batch_size < 1 or batch_size % process_count:
        above = max(1, -(-batch_size // process_count)) * process_count
        raise ValueError(f"batch_size={batch_size} cannot be split over {process_count} processes; {above} can")
    return batch_size // process_count


def _first_sound(source: Source, transform: Callable, first: int, random: np.random.Generator) -> Example:
    for skipped in range(ATTEMPTS):
        index = (first + skipped) % len(source)
        try:
            return {**transform(source[index], random), "skipped": np.int32(skipped)}
        except BadExample as error:
            logger.warning("example %d is damaged; the next one replaces it: %s", index, error)
        except ValueError as error:
            raise ValueError(f"example {index}: {error}") from error
    raise BadExample(f"{ATTEMPTS} examples in a row are damaged, from {first} on")


def _iterate(batches: grain.MapDataset, workers: int) -> Iterator[Example]:
    if not workers:
        return iter(batches.to_iter_dataset(grain.ReadOptions(THREADS, BATCHES_AHEAD)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain reads absl flags, which only absl programs parse
    # A worker prepares one batch at a time, since the order must not depend on the number of workers.
    in_order = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=BATCHES_AHEAD)
    return iter(in_order.mp_prefetch(options, _begin_worker))


def _begin_worker(index: int, count: int):
    """Ends a worker process with the training process, and not before."""
    cv2.setNumThreads(1)  # the workers are the parallelism
    # Ctrl-C and SIGTERM reach all processes, but only the training process handles them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()  # type: ignore[union-attr]  # which a worker has
    os._exit(1)
