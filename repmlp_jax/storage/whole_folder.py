"""Folders that are written, and replaced, as a whole.

No system call replaces a folder that is not empty, so the old one is moved aside first. Whoever finds nothing in its
place, because a process was killed at that instant, puts it back.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from repmlp_jax.storage.partial import partial_path, partials, sync, sync_tree

logger = logging.getLogger("repmlp_jax")

NEW, REPLACED = "new", "replaced"
TAKEN = errno.EEXIST, errno.ENOTEMPTY  # Another process has put a folder there in between.


@contextlib.contextmanager
def whole_folder(path: Path, check: Callable[[], None]) -> Iterator[Path]:
    """Yields an empty folder to write to, which replaces the folder `path` when the block ends.

    It is removed if the block fails. At every instant the old or the new folder is at `path`, or `put_back` finds the
    old one.

    Args:
        path: the folder, absolute; missing parents are created.
        check: raises an error unless what is at `path` now may be replaced.
    """
    put_back(path)  # before `partial_path` clears what is left
    with partial_path(path) as partial:
        new, replaced = partial / NEW, partial / REPLACED
        new.mkdir(parents=True)
        yield new
        sync_tree(partial)
        sync(path.parent)
        try:
            while True:
                check()
                if replaced.exists():
                    shutil.rmtree(replaced)
                try:
                    with contextlib.suppress(FileNotFoundError):
                        path.rename(replaced)
                    new.rename(path)
                    break
                except OSError as error:
                    if error.errno not in TAKEN:
                        raise
        finally:
            put_back(path)
        sync(path.parent)


def is_folder(path: Path) -> bool:
    """Whether there is a folder at `path`, after `put_back`."""
    put_back(path)
    return path.is_dir()


def put_back(path: Path) -> None:
    """Moves the folder back to `path` that a process moved aside and did not replace, if there is one."""
    if os.path.lexists(path):
        return
    for partial, *_ in partials(path):
        # The new folder leaves `partial` in the instant in which it takes its place.
        if (partial / NEW).exists() and (partial / REPLACED).exists():
            try:
                (partial / REPLACED).rename(path)
            except OSError as error:
                if error.errno not in (*TAKEN, errno.ENOENT):  # Otherwise another process was faster.
                    raise
            else:
                logger.warning("a process that was replacing %s did not finish; the folder is restored", path)
            return
