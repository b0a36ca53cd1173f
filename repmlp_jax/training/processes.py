"""Connecting the processes of one training."""

import logging
import os
import socket
import sys
import threading

import jax

logger = logging.getLogger("repmlp_jax")

SECONDS_TO_MEET = 300


def check_processes(
    distributed: bool, coordinator_address: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Raises ValueError for flags of a training on several processes that cannot work."""
    flags = dict(coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id)
    given = [f"--{name}" for name, value in flags.items() if value is not None]
    if given and not distributed:
        raise ValueError(f"{', '.join(given)} has no effect without --distributed: add it, or leave that out")
    if coordinator_address is not None:
        host, _, port = coordinator_address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise ValueError(
                f"--coordinator_address={coordinator_address} must be host:port, with a port from 1 to 65535"
            )
    if num_processes is not None and num_processes < 1:
        raise ValueError(f"--num_processes={num_processes} must be above 0")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise ValueError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1}, for {num_processes} processes"
            if num_processes
            else f"--process_id={process_id} must not be below 0"
        )


def connect(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    seconds: float = SECONDS_TO_MEET,
) -> None:
    """Connects this process to the others, by what it is given and what JAX finds out about the job.

    The log says what is waited for. If the processes have not met in time, the program ends with one line: JAX would
    end it with a stack trace of C++.

    Raises:
        ValueError: if an argument is missing that JAX does not find out.
    """
    flags = dict(coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id)
    where = f" at {coordinator_address}" if coordinator_address else ""
    who = "waiting for the other processes" if process_id is None else f"process {process_id} waits for the others"
    logger.info("%s%s, at most %g seconds", who, where, seconds)
    if coordinator_address:
        _warn_of_unknown_host(coordinator_address)

    def give_up():
        print(f"error: the processes have not met{where} within {seconds:g} seconds", file=sys.stderr, flush=True)
        os._exit(2)  # The main thread waits in C++, where no exception reaches it.

    watch = threading.Timer(seconds, give_up)
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, initialization_timeout=int(seconds) + 60
        )
    except ValueError as error:
        missing = ", ".join(f"--{name}" for name, value in flags.items() if value is None)
        if not missing:
            raise
        raise ValueError(f"no Slurm, TPU or Kubernetes job that JAX recognises: give {missing}") from error
    except RuntimeError as error:
        reason, *_ = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"cannot connect to the other processes{where}: {reason}") from error
    finally:
        watch.cancel()


def _warn_of_unknown_host(address: str):
    host, _, port = address.rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), port)
    except OSError as error:
        # Not an error: where machines start together, a name may become known later.
        logger.warning("the host %s cannot be resolved: %s", host, error.strerror)
