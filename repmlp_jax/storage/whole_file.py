"""Files that are written atomically."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path, overwrite: bool) -> Iterator[Path]:
    """Yields a path to write to, which replaces `path` when the block ends and is removed if it fails.

    Args:
        path: the file; missing parents are created.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        IsADirectoryError: if `path` is a folder.
        TypeError: if `path` is no path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path={path!r} must be the path of a file")
    path = Path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; choose the path of a file")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial.{os.getpid()}")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
