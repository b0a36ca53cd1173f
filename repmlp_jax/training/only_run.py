"""A lock on a run's folder, so that two runs do not write to it at once."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger("repmlp_jax")

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


@contextlib.contextmanager
def only_run(workdir: Path) -> Iterator[None]:
    """A context in which no other run can enter the folder, which is created; a run is all of its processes.

    Process 0 holds a lock of the operating system on the file `lock`, which ends with the process, however it ends. The
    file is removed at the end; one that a killed run left does not matter.

    Raises:
        BlockingIOError: if another run is in the folder; it names that run.
    """
    path = workdir / "lock"
    with contextlib.ExitStack() as stack:
        failure = None
        if jax.process_index() == 0:
            try:
                stack.enter_context(_locked(path))
            except BaseException as error:
                failure = error
        if jax.process_count() > 1:
            failed = multihost_utils.broadcast_one_to_all(np.asarray(failure is not None))
            if failed and failure is None:
                failure = BlockingIOError(f"process 0 cannot lock {workdir}: see its own error")
        if failure is not None:
            raise failure
        yield


@contextlib.contextmanager
def _locked(path):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if path.parent.is_file() else error.strerror
        raise type(error)(f"the run's folder {path.parent} cannot be made: {reason}; choose another workdir") from None
    while True:
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read() or "another process"
                raise BlockingIOError(
                    f"another run is in {path.parent}: {holder}. Wait for it, end it, or choose another workdir"
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                logger.warning("%s cannot be locked (%s): no second run may be started in it", path.parent, error)
            # The run before may have removed the file after this one had opened it.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            try:
                with contextlib.suppress(OSError):  # The lock holds without its text, if the disk is full.
                    file.truncate(0)
                    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%F %T} UTC")
                    file.flush()
                yield
            finally:
                with contextlib.suppress(OSError):
                    path.unlink()
            return
