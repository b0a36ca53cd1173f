"""What is seen of a file of weights before it is read: whether it is one, whole, and no larger than it looks."""

import logging
import zipfile
from pathlib import Path

logger = logging.getLogger("repmlp_jax")

# How a file starts, in lower case → what it is instead of weights.
OTHER_CONTENT = {
    b"version https://git-lfs": "is a pointer of Git LFS and not the weights: `git lfs pull` downloads them",
    b"<!doctype": "is a web page and not the weights: download the file that the page links to",
    b"<html": "is a web page and not the weights: download the file that the page links to",
    b"<?xml": "is an answer of a server in XML and not the weights: download them again",
}
ZIP = b"PK\x03\x04"  # as PyTorch tells its zip files from older pickles
LARGEST_RATIO = 2


def check_content(path: Path):
    """Refuses what is not a regular file, and web pages and the like under the name of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        ValueError: if it is not a file of weights.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and weights are a file; load_model reads a saved model")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file but a device, a pipe or a socket")
    with path.open("rb") as file:
        start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    for prefix, what in OTHER_CONTENT.items():
        if start.startswith(prefix):
            raise ValueError(f"{path} {what}")


def check_zip(path: Path):
    """Checks the sizes and checksums in a zip file; any other file passes.

    `torch.load` compares no checksums. `torch.save` writes them unless `torch.serialization.set_crc32_options` says
    otherwise; a file without is read with a warning.

    Raises:
        ValueError: if the file is damaged, a TorchScript program, or unpacks to much more than its size.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damage raises any kind of error
        raise ValueError(f"{path} is damaged or no PyTorch file: {error}") from error
    with archive:
        entries = archive.infolist()
        if any(entry.filename.endswith("/constants.pkl") for entry in entries):
            raise ValueError(
                f"{path} holds more than weights, which was not executed: it is a program of TorchScript. Where you "
                f"trust it, load it by torch.jit.load and save its state_dict"
            )
        size, unpacked = path.stat().st_size, sum(entry.file_size for entry in entries)
        if unpacked > LARGEST_RATIO * size:
            raise ValueError(
                f"{path} has {size:,} bytes and unpacks to {unpacked:,}: it is not read, since torch.save compresses "
                f"nothing and this is more than {LARGEST_RATIO} times its size"
            )
        if not any(entry.CRC for entry in entries):
            logger.warning("%s has no checksums: damage to it cannot be detected", path)
            return
        try:
            damaged = archive.testzip()
        except Exception as error:
            raise ValueError(f"{path} is damaged: {error or type(error).__name__}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of its part {damaged} is wrong")
