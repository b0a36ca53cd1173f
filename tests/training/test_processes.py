import logging
import subprocess
import sys

import jax
import patience
import pytest

from repmlp_jax.training import processes
from repmlp_jax.training.processes import check_processes, connect


@pytest.mark.parametrize(
    ("distributed", "arguments", "message"),
    [
        (False, ("h:1", None, 0), "--coordinator_address, --process_id has no effect without --distributed"),
        (False, (None, 2, None), "--num_processes has no effect without --distributed"),
        (True, ("h", 2, 0), "--coordinator_address=h must be host:port, with a port from 1 to 65535"),
        (True, (":1234", 2, 0), "--coordinator_address=:1234 must be host:port"),
        (True, ("h:x", 2, 0), "--coordinator_address=h:x must be host:port"),
        (True, ("h:70000", 2, 0), "--coordinator_address=h:70000 must be host:port"),
        (True, ("h:1", 0, None), "--num_processes=0 must be above 0"),
        (True, ("h:1", 2, 5), "--process_id=5 must be from 0 to 1, for 2 processes"),
        (True, ("h:1", None, -1), "--process_id=-1 must not be below 0"),
    ],
)
def test_flags_that_cannot_work_are_refused(distributed, arguments, message):
    with pytest.raises(ValueError, match=message):
        check_processes(distributed, *arguments)


def test_flags_that_can_work():
    check_processes(False, None, None, None)
    check_processes(True, None, None, None)
    check_processes(True, "[::1]:1234", 2, 1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("coordinator_address should be defined."), "job that JAX recognises: give --num_processes$"),
        (
            RuntimeError("UNKNOWN: no server\nstack"),
            "cannot connect to the other processes at localhost:1: UNKNOWN: no",
        ),
    ],
)
def test_what_jax_says_becomes_one_error(monkeypatch, error, message):
    def initialize(*_, **__):
        raise error

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=message):
        connect("localhost:1", None, 0)


def test_the_log_says_what_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(processes.socket, "getaddrinfo", unknown)
    with caplog.at_level(logging.INFO, "repmlp_jax"):
        connect("nowhere:1234", 2, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "process 1 waits for the others at nowhere:1234, at most 300 seconds",
        "the host nowhere cannot be resolved: no such name",
    ]


def unknown(*_):
    raise OSError(2, "no such name")


@pytest.mark.slow
def test_processes_that_do_not_meet_end_with_one_line():
    code = "from repmlp_jax.training.processes import connect; connect('localhost:1', 2, 1, seconds=1)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience.seconds(60), check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: the processes have not met at localhost:1 within 1 seconds\n"
