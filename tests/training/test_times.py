"""The time of a run: how long the devices waited for data, and sums that survive interruptions."""

import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from repmlp_jax.training import loop, times
from repmlp_jax.training.feed import StreamedFeed
from repmlp_jax.training.sharding import make_mesh
from repmlp_jax.training.times import Times, waiting_seconds


def simulated(count, data, compute, ahead):
    """A call in which a batch takes `data` seconds and a step `compute`; `ahead` batches are there from the start.

    The host asks for batches without waiting for the devices. Returns the feed's times, and the time that was lost.
    """
    host = devices = asking = idle = 0.0
    for number in range(count):
        there = max(host, data * (number + 1 - ahead))
        asking += there - host
        host = there
        idle += max(0.0, host - devices)
        devices = max(devices, host) + compute
    return SimpleNamespace(asking_seconds=asking, started=host), devices, idle


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("count", [1, 3, 100])
@pytest.mark.parametrize(("data", "compute"), [(1.0, 0.1), (0.1, 1.0), (0.8, 1.0), (1.0, 0.9), (0.0, 1.0)])
def test_waiting_is_what_the_devices_waited_and_not_the_host(data, compute, count, ahead):
    feed, end, idle = simulated(count, data, compute, ahead)
    assert waiting_seconds(feed, count, 0.0, end) == pytest.approx(idle, abs=(ahead + 1) * compute)
    if count == 1 or (data > compute and not ahead):
        assert waiting_seconds(feed, count, 0.0, end) == pytest.approx(idle)


def test_a_dataset_on_the_devices_is_not_waited_for():
    assert waiting_seconds(object(), 5, 0.0, 3.0) == 0


def test_a_stream_says_how_long_it_was_asked():
    def batches(step):
        while True:
            time.sleep(0.01)
            yield dict(image=np.zeros(8, np.float32))

    mesh = make_mesh(devices=jax.devices()[:1])
    feed = StreamedFeed(batches, 8, mesh)
    run = feed.compile(lambda state, batch, key: state + batch["image"].sum(), jax.random.key(0), None)
    run(np.float32(0), 0, 3)
    assert 0.03 <= feed.asking_seconds <= feed.started
    assert feed.started <= time.perf_counter()


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr(times, "time", clock)
    monkeypatch.setattr(times, "peak_memory", lambda: 10**9)
    return clock


def run_steps(clock, measured, *steps):
    """An epoch of ten steps of a second each up to each step, and a second of evaluation."""
    for step in steps:
        with measured.timed(10):
            clock.now += 10
        clock.now += 1
        measured.add(step)


def test_the_sums_go_on_where_a_run_is_resumed(clock, tmp_path, caplog):
    feed = object()
    run_steps(clock, Times(tmp_path, 0, feed), 10, 20, 30)
    before = (tmp_path / "times.csv").read_text()
    # It resumes from step 20: the third epoch is not counted twice.
    resumed = Times(tmp_path, 20, feed)
    run_steps(clock, resumed, 30, 40)
    assert (tmp_path / "times.csv").read_text().splitlines()[:3] == before.splitlines()[:3]
    figures = resumed.figures(32, 20)
    memory = dict(peak_memory_bytes=10**9, peak_memory_of="process")
    # Of each process the first call is not timed, since it compiles.
    assert figures == dict(seconds=44, seconds_to_best=22, images_per_second=32, share_waiting_for_data=0, **memory)
    # The same from the file, once nothing is left to train.
    assert Times(tmp_path, 40, feed).figures(32, 20) == figures
    # Of a run that an earlier version began, it is not known how long it took.
    (tmp_path / "times.csv").write_text("step\ndamaged\n")
    begun_before = Times(tmp_path, 20, feed)
    run_steps(clock, begun_before, 30, 40)
    figures |= dict(seconds=None, seconds_to_best=None)
    assert begun_before.figures(32, 40) == Times(tmp_path, 40, feed).figures(32, 40) == figures
    assert "times.csv cannot be read, and times are counted from here on" in caplog.text


def test_the_rate_in_the_bar_is_that_of_everything(monkeypatch):
    monkeypatch.setattr(loop, "progress_bar", lambda **options: options)
    assert loop._progress_bar(8, 0, 4)["smoothing"] == 0


@pytest.mark.parametrize(
    ("stats", "expected"),
    [([{"peak_bytes_in_use": 5}, {"peak_bytes_in_use": 7}], 7), ([None], None), ([{}], None)],
)
def test_peak_memory_is_that_of_the_fullest_device_where_it_is_known(monkeypatch, stats, expected):
    devices = [SimpleNamespace(memory_stats=lambda one=one: one) for one in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = times.peak_memory()
    assert found == expected if expected else found > 10**7
