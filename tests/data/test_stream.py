"""A batch depends on the seed and its number alone, and nothing is left running."""

import functools
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import patience
import pytest

from repmlp_jax.data.stream import BadExample, evaluation_stream, make_stream

EXAMPLES = 100  # grain takes the longer to shuffle the fewer there are
EXAMPLE_SIZE = 1000  # numbers, enough that batches come from worker processes through shared memory


def draw(index, random):
    return {"index": np.int32(index), "image": random.random(EXAMPLE_SIZE, np.float32)}


def draw_unless_damaged(index, random, damaged):
    if index in damaged:
        random.random()  # what a damaged example draws must not harm what takes its place
        raise BadExample(f"no picture {index}")
    return draw(index, random)


def keep(index):
    return {"index": np.int32(index), "image": np.full((2, 2), index, np.float32)}


def keep_unless_three(index):
    if index == 3:
        raise BadExample("no picture")
    return keep(index)


def draw_but_fail_at_three(index, random):
    if index == 3:
        raise ZeroDivisionError("a bug in the transform")
    return draw(index, random)


def read(count, *, source=range(EXAMPLES), transform=draw, batch_size=40, seed=0, **arguments):
    with make_stream(source, transform, batch_size=batch_size, seed=seed, **arguments) as stream:
        return [next(stream) for _ in range(count)]


def assert_equal(batches, expected):
    assert len(batches) == len(expected)
    for batch, expected_batch in zip(batches, expected, strict=True):
        assert batch.keys() == expected_batch.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected_batch[name])
            assert np.asarray(batch[name]).dtype == np.asarray(expected_batch[name]).dtype


def joined(parts):
    """Of each process's batches the batches of all processes."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in ("index", "image")}
        for step in zip(*parts, strict=True)
    ]


def test_every_epoch_has_each_example_once_in_an_order_of_its_own():
    order = np.concatenate([batch["index"] for batch in read(15)])  # six epochs of a hundred
    epochs = order.reshape(6, EXAMPLES)
    assert (np.sort(epochs, axis=1) == np.arange(EXAMPLES)).all()
    assert len(np.unique(epochs, axis=0)) == 6


def test_an_example_is_augmented_anew_in_every_epoch():
    batches = read(15)
    images = np.concatenate([batch["image"] for batch in batches])
    assert len(np.unique(images[:, 0])) == 600


def test_the_same_seed_gives_the_same_and_another_seed_another_stream():
    assert_equal(read(6, seed=1), read(6, seed=1))
    one, other = (read(6, seed=seed) for seed in (1, 2))
    for name in ("index", "image"):
        assert any((a[name] != b[name]).any() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("start", [0, 1, 2, 5, 40])
def test_a_stream_opened_at_a_step_goes_on_bit_by_bit(start):
    whole = read(start + 4)
    assert_equal(read(4, start=start), whole[start:])


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_all_processes_together_read_the_batch_that_one_would(processes, start):
    parts = [read(6, start=start, process_index=index, process_count=processes) for index in range(processes)]
    assert all(len(batch["index"]) == 40 // processes for part in parts for batch in part)
    whole = [{name: batch[name] for name in ("index", "image")} for batch in read(6, start=start)]
    assert_equal(joined(parts), whole)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_worker_processes_change_nothing(workers):
    assert_equal(read(7, start=2, workers=workers), read(7, start=2))
    assert_equal(read(3, workers=workers, process_index=1, process_count=2), read(3, process_index=1, process_count=2))


def test_grains_own_state_goes_on_at_the_same_batch_as_the_step():
    with make_stream(range(EXAMPLES), draw, batch_size=40, seed=0) as stream:
        for _ in range(3):
            next(stream)
        (iterator,) = stream._open
        state = iterator.get_state()
        following = [next(stream) for _ in range(3)]
        iterator.set_state(state)
        again = [next(stream) for _ in range(3)]
    assert_equal(again, following)
    assert_equal(following, read(3, start=3))


def test_a_batch_may_be_larger_than_the_dataset():
    (batch,) = read(1, batch_size=250)
    counts = np.bincount(batch["index"], minlength=EXAMPLES)
    assert counts.min() >= 2
    assert counts.max() <= 3


def test_a_damaged_example_is_replaced_by_the_next_one_and_counted(caplog):
    transform = functools.partial(draw_unless_damaged, damaged={3, 4, 99})
    sound, replaced = read(5), read(5, transform=transform)
    substitutes = {3: 5, 4: 5, 99: 0}
    skips = {3: 2, 4: 1, 99: 1}
    for batch, original in zip(replaced, sound, strict=True):
        expected = [substitutes.get(index, index) for index in original["index"].tolist()]
        assert batch["index"].tolist() == expected
        assert batch["skipped"].tolist() == [skips.get(index, 0) for index in original["index"].tolist()]
        assert not original["skipped"].any()
    assert "example 99 is damaged; the next one replaces it: no picture 99" in caplog.text
    assert_equal(read(3, transform=transform, start=2), replaced[2:])


@pytest.mark.slow
def test_the_count_of_damaged_examples_comes_through_worker_processes():
    transform = functools.partial(draw_unless_damaged, damaged={3, 4, 99})
    assert_equal(read(5, transform=transform, workers=2), read(5, transform=transform))


def test_a_source_without_any_sound_example_is_refused(caplog):
    transform = functools.partial(draw_unless_damaged, damaged=set(range(EXAMPLES)))
    with caplog.at_level(logging.ERROR), pytest.raises(BadExample, match="100 examples in a row are damaged, from"):
        read(1, transform=transform)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_any_other_error_is_raised_as_it_is(workers):
    with pytest.raises(ZeroDivisionError, match="a bug in the transform"):
        read(5, transform=draw_but_fail_at_three, workers=workers)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("examples", [1, 7, 8, 9, 17])
def test_evaluation_has_every_example_once_in_order_and_equally_many_batches_everywhere(processes, examples):
    parts = []
    for index in range(processes):
        with evaluation_stream(
            range(examples), keep, batch_size=8, process_index=index, process_count=processes
        ) as stream:
            parts.append(list(stream))
    assert {len(part) for part in parts} == {-(-examples // 8)}
    batches = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    assert all(batch["mask"].dtype == bool and batch["mask"].shape == (8,) for batch in batches)
    seen = np.concatenate([batch["index"][batch["mask"]] for batch in batches])
    assert seen.tolist() == list(range(examples))
    for batch in batches:
        assert (batch["image"] == batch["index"][:, None, None]).all()


@pytest.mark.slow
def test_evaluation_with_worker_processes_is_the_same():
    one, other = (
        list(evaluation_stream(range(17), keep, batch_size=8, workers=workers, process_index=1, process_count=2))
        for workers in (0, 2)
    )
    assert_equal(one, other)


def test_a_damaged_example_cannot_be_evaluated():
    with (
        evaluation_stream(range(8), keep_unless_three, batch_size=4) as stream,
        pytest.raises(BadExample, match="example 3 cannot be evaluated: no picture"),
    ):
        list(stream)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(batch_size=6, process_count=4), "batch_size=6 cannot be split over 4 processes; 8 can"),
        (dict(batch_size=0), "batch_size=0 cannot be split over 1 processes; 1 can"),
        (dict(process_index=2, process_count=2), "process_index=2 must be below process_count=2"),
        (dict(start=-1), "start=-1 must not be below 0"),
        (dict(workers=-1), "workers=-1 must not be below 0"),
        (dict(seed=2**32), f"seed={2**32} must not be below 0 or above {2**32 - 1}"),
        (dict(source=()), "the source holds no example"),
    ],
)
def test_impossible_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        read(1, **arguments)


def test_a_closed_stream_says_so():
    stream = make_stream(range(EXAMPLES), draw, batch_size=40, seed=0)
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(ValueError, match="the stream is closed"):
        next(stream)


READ_TWO_BATCHES = """
import multiprocessing, os, signal, sys
sys.path[:0] = sys.argv[1:]
from test_stream import draw
from repmlp_jax.data.stream import make_stream

if __name__ == "__main__":
    stream = make_stream(range(1000), draw, batch_size=40, seed=0, workers=2)
    for _ in range(2):
        next(stream)
    print(*[child.pid for child in multiprocessing.active_children()], flush=True)
    ENDING
"""


def run_script(ending, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(READ_TWO_BATCHES.replace("ENDING", ending))
    folders = Path(__file__).parents[:2]
    return subprocess.Popen(
        [sys.executable, script, *folders], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_end(pids):
    patience.wait_until(lambda: not any(map(is_running, pids)), "a worker process goes on without its parent", 15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),  # the end of Python, with the stream open
        ("stream.close(); assert not multiprocessing.active_children()", 0),
        ("del stream; assert not multiprocessing.active_children()", 0),
        ("sys.exit(143)", 143),
        ("raise KeyError", 1),
        # A cluster's SIGTERM reaches the workers too; the stream goes on for as long as its process does.
        (
            "[os.kill(child.pid, signal.SIGTERM) for child in multiprocessing.active_children()]; "
            "[next(stream) for _ in range(9)]",
            0,
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
    ids=["end", "close", "delete", "exit", "error", "terminated workers", "killed"],
)
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
def test_no_process_outlives_its_parent_and_nothing_is_complained_about(ending, code, tmp_path):
    process = run_script(ending, tmp_path)
    printed, complaints = process.communicate(timeout=patience.seconds(60))
    pids = [int(pid) for pid in printed.split()]
    assert len(pids) == 2, complaints
    assert process.returncode == code, complaints
    assert_end(pids)
    if code in (0, 143):
        assert complaints == ""
