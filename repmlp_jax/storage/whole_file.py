"""Files that are written atomically."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from repmlp_jax.local_path import local_path
from repmlp_jax.storage.partial import partial_path, sync


@contextlib.contextmanager
def whole_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yields the path of an empty file to write to, which replaces `path` when the block ends.

    It is removed if the block fails; the next call removes what a killed process leaves. The file has the rights that
    the umask gives.

    Args:
        path: the file; missing parents are created.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off, or it is neither a file nor a folder.
        IsADirectoryError: if `path` is a folder.
        NotADirectoryError: if one of its parents is a file.
        TypeError: if `path` is not a path.
        ValueError: if it is not on this machine.
    """
    path = local_path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; choose the path of a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is a device, pipe or socket; choose the path of a file")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    with partial_path(path) as partial:
        partial.touch()
        rights = partial.stat().st_mode
        yield partial
        partial.chmod(rights)  # safetensors lets nobody else read its files.
        sync(partial)
        partial.replace(path)
        sync(path.parent)
