"""Batches that the host reads and prepares while the devices compute.

What a batch holds depends on the seed and its number alone: not on how many worker processes prepare it, not on how
many processes train, not on where the stream was opened. So the training step is all that has to be saved of a stream.
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

logger = logging.getLogger("repmlp_jax")

ATTEMPTS = 100  # examples tried for one place in a batch; so many damaged ones in a row are no accident

# Without worker processes, threads prepare batches while the devices compute: decoding releases Python's lock.
THREADS = 2
BATCHES_AHEAD = 2  # of each worker process or, without, of all threads together

Example = dict[str, Any]


class BadExample(ValueError):  # noqa: N818 - it says what the example is; the stream decides whether that is an error
    """What a transform raises for an example that cannot be used, such as a picture that cannot be decoded."""


@runtime_checkable
class Source(Protocol):
    """Examples with random access, as of `tfds.data_source`; where there are worker processes it is pickled."""

    def __len__(self) -> int:
        """The number of examples."""

    def __getitem__(self, index: int) -> Any:
        """The example at a place from 0 on."""


class Stream(Iterator[Example]):
    """Batches one after another, and the processes and threads that make them.

    `close` ends them; so do `with`, the garbage collector and the end of Python. With worker processes the arrays lie
    in memory shared with them, which is freed with the array.
    """

    def __init__(self, batches: Iterator[Example]):
        self._open = [batches]
        self._end = weakref.finalize(self, _close, self._open)
        # Grain's own cleaning up comes after multiprocessing's, which has closed by then what it needs.
        atexit.register(self._end)

    def __next__(self) -> Example:
        if not self._open:
            raise ValueError("the stream is closed")
        return next(self._open[0])

    def close(self):
        """Ends the processes and threads; no batch can be read from then on."""
        self._end()
        atexit.unregister(self._end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _close(opened: list):
    # Grain's iterators complain if they are still there when Python takes its modules apart.
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

    Every epoch has an order of its own, drawn from the seed. An epoch's last examples that fill no batch begin a batch
    that the next epoch's first complete, so that all are seen equally often. The parts of all processes, one behind
    the other, are the batch that a single process would read.

    An example for which `transform` raises `BadExample` is replaced by the next in the source that is sound, each time
    by the same, and named in the log.

    Args:
        source: the examples.
        transform: `(example, random) → arrays`, of equal shapes for all examples. It draws from `random` alone, which
            is another for each place in the stream. With workers it is pickled.
        batch_size: examples of a batch, of all processes together.
        seed: of the order and of `random`, from 0 to 2³² - 1.
        start: number of the first batch, from 0.
        workers: processes that prepare batches, of each training process; 0: threads of this one. A script that
            uses them needs `if __name__ == "__main__":`, as they import it again.
        process_index: which part is read.
        process_count: number of training processes.

    Returns:
        An iterator of name → array (batch_size / process_count, …), with the entry "skipped", an integer for each
        place: the damaged examples in the source before the one that is there. It raises BadExample where 100 in a row
        are damaged, and what `transform` raises.

    Raises:
        ValueError: if a number is out of range, the source is empty, or the batch cannot be split evenly.
    """
    part = _part(source, batch_size, process_index, process_count)
    for name, number, end in (("start", start, None), ("workers", workers, None), ("seed", seed, 2**32)):
        if number < 0 or (end and number >= end):
            raise ValueError(f"{name}={number} must not be below 0{f' or above {end - 1}' if end else ''}")

    def prepare(index, random):
        return _first_sound(source, transform, index, random)

    # Grain's endless repetition is too long to be cut into batches of one; it computes lengths in float64.
    epochs = 2**52 // len(source)
    places = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(epochs)
    # Parts are cut from the whole stream after all is drawn, so what is drawn does not know of the processes.
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
    """A stream of this process's parts of the batches in which every example is exactly once, in the source's order.

    Args:
        source: the examples.
        transform: `example → arrays`, of equal shapes for all examples. With workers it is pickled.
        batch_size: as of `make_stream`.
        workers: as of `make_stream`.
        process_index: as of `make_stream`.
        process_count: as of `make_stream`.

    Returns:
        An iterator of name → array (batch_size / process_count, …), equally many for every process. The entry "mask",
        bool (batch_size / process_count,), is False where the last example fills up the last batch. It raises what
        `transform` raises, BadExample too: a score without some examples would be another score.

    Raises:
        ValueError: if a number is out of range, the source is empty, or the batch cannot be split evenly.
    """
    part = _part(source, batch_size, process_index, process_count)
    if workers < 0:
        raise ValueError(f"workers={workers} must not be below 0")
    last = len(source) - 1

    def prepare(place):
        index = min(place, last)
        try:
            return {**transform(source[index]), "mask": np.bool_(place <= last)}
        except BadExample as error:
            raise BadExample(f"example {index} cannot be evaluated: {error}") from error

    places = grain.MapDataset.range(-(-len(source) // batch_size) * batch_size)
    return Stream(_iterate(places.map(prepare).batch(part)[process_index::process_count], workers))


def _part(source: Source, batch_size: int, process_index: int, process_count: int) -> int:
    """Examples of a batch that this process reads."""
    if not len(source):
        raise ValueError("the source holds no example")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index={process_index} is none of {process_count} processes")
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
            logger.warning("example %d is damaged, the next takes its place: %s", index, error)
    raise BadExample(f"{ATTEMPTS} examples in a row are damaged, from {first} on")


def _iterate(batches: grain.MapDataset, workers: int) -> Iterator[Example]:
    if not workers:
        return iter(batches.to_iter_dataset(grain.ReadOptions(THREADS, BATCHES_AHEAD)))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain asks absl for flags, which only a program of absl's parses
    # A worker makes one batch at a time, as the order must not depend on the number of workers.
    in_order = batches.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=BATCHES_AHEAD)
    return iter(in_order.mp_prefetch(options, _begin_worker))


def _begin_worker(index: int, count: int):
    """Lets a worker process live as long as the training process wants, and no longer."""
    cv2.setNumThreads(1)  # the workers are the parallelism
    # Of Ctrl-C and of a cluster's SIGTERM, which reach all processes, the training process decides what they mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()  # type: ignore[union-attr]  # which a worker has
    os._exit(1)
