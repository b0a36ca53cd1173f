"""Paths as users write them."""

import os
import re
from pathlib import Path

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path turns gs://bucket into gs:/bucket; C:/ is a drive of Windows.


def local_path(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """The file or folder of this machine that a user names; `~` stands for the home folder.

    Args:
        path: as the user gave it.
        argument: the name of the argument, for the message.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is an address, such as `gs://bucket`, or starts with `~` and no home folder is known.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{argument} must be a path, not a {type(path).__name__}")
    if address := ADDRESS.match(os.fspath(path)):
        on_hub = "saved models are read from the hub, and `repmlp-jax push` writes there"
        raise ValueError(
            f"{path} is an address, and only files of this machine are read and written: "
            f"{on_hub if address[0] == 'hf:/' else f'mount what {address[0]}/ names as a folder'}"
        )
    path = Path(path)
    try:
        return path.expanduser()
    except RuntimeError:
        home = path.parts[0]
        raise ValueError(
            f"{path} needs a home folder, and none is known for {home}: set HOME, or replace {home}"
        ) from None


def local_file(path: str | os.PathLike[str], what: str) -> Path:
    """The regular file that a user names; a pipe, which might never end, is refused.

    Args:
        path: as the user gave it.
        what: what the file should be, for the message.

    Raises:
        FileNotFoundError: if there is nothing at this path.
        TypeError: as `local_path`.
        ValueError: as `local_path`, or if there is something else than a file.
    """
    path = local_path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a {what}: it is a folder, a pipe or a device")
    return path
