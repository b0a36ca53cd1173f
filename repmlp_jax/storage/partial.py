"""What is being written: it has a name of its own until it is whole, and what a killed process leaves is cleared."""

import contextlib
import errno
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

_of_this_process: set[Path] = set()


@contextlib.contextmanager
def partial_path(path: Path) -> Iterator[Path]:
    """Yields a new name beside `path`, `<name>.partial.<random>.<process>.<host>`, for what is being written.

    Missing parents are created, and what killed processes of this host left under such names is removed. What bears
    the yielded name at the end is removed, too.
    """
    _make_folder(path.parent)
    for leftover, process, host in partials(path):
        if host == socket.gethostname() and _has_ended(leftover, process):
            _remove(leftover)
    partial = path.with_name(f"{path.name}.partial.{uuid.uuid4().hex[:8]}.{os.getpid()}.{socket.gethostname()}")
    _of_this_process.add(partial)
    try:
        yield partial
    finally:
        _of_this_process.discard(partial)
        _remove(partial)


def partials(path: Path) -> list[tuple[Path, int, str]]:
    """What is or was being written for `path`, each with the process and the host that write it."""
    if not path.parent.is_dir():
        return []
    pattern = re.compile(re.escape(path.name) + r"\.partial\.[0-9a-f]{8}\.([1-9]\d{0,8})\.(.+)")
    found = [(other, pattern.fullmatch(other.name)) for other in path.parent.iterdir()]
    return [(other, int(match[1]), match[2]) for other, match in found if match]


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's names, are on the disk, where they outlive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # Some network file systems cannot do it for folders.
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and all that is in it."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def _make_folder(folder: Path):
    above = folder, *folder.parents
    if files := [one for one in above if one.is_file()]:
        raise NotADirectoryError(f"{files[0]} is a file, so nothing can be written below it")
    missing = [one for one in above if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable for this user")
    for one in missing:
        sync(one.parent)


def _has_ended(partial: Path, process: int) -> bool:
    if process == os.getpid():  # In a container that was started again, the killed process had the same number.
        return partial not in _of_this_process
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass  # It is another user's.
    return False


def _remove(path: Path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
