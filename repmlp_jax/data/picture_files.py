"""Pictures in files: which those in a folder are, and examples that are read from them."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repmlp_jax.data.stream import BadExample

SUFFIXES = (  # of what OpenCV decodes
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2"),
    *(".pbm", ".pgm", ".ppm", ".pnm"),
)


class PictureFiles:
    """Examples with "image", the bytes of a file, "label", and "path"; a file is read when it is asked for.

    Args:
        folder: that the files lie in.
        files: class → its files; labels number the classes in this order.
        left_out: the number of other files in the folder, by their suffix.
    """

    def __init__(self, folder: Path, files: Mapping[str, Sequence[str]], left_out: Mapping[str, int]):
        self.folder = folder
        self.files = files
        self.left_out = left_out
        self.paths = [file for of_class in files.values() for file in of_class]
        self._labels = np.repeat(np.arange(len(files)), [len(of_class) for of_class in files.values()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Raises BadExample for a file that is gone or may not be read; a disk that fails is no damaged picture."""
        path = Path(self.paths[index])
        try:
            if not path.is_file():  # a pipe might never end
                raise BadExample(f"{path} is no file, or a link to none")
            return {"image": path.read_bytes(), "label": int(self._labels[index]), "path": str(path)}
        except (FileNotFoundError, PermissionError) as error:
            raise BadExample(f"{path} cannot be read: {error.strerror}") from error

    def names(self) -> list[str]:
        """The paths of the pictures in the folder."""
        return [os.path.relpath(path, self.folder) for path in self.paths]


def pictures_in(folder: str | Path) -> tuple[list[str], Counter[str]]:
    """The pictures in a folder and in the folders within it, sorted, and the number of other files by their suffix.

    The suffix says what is a picture, in upper or lower case. Names that begin with a dot are passed over, and links
    are followed.

    Raises:
        OSError: if a folder cannot be read.
        ValueError: if a link leads to a folder that is read already.
    """
    found, left_out, seen = [], Counter[str](), set[str]()
    for here, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(here)) in seen:
            raise ValueError(f"{here} is {real}, whose pictures are read already: remove the link")
        seen.add(real)
        folders[:] = visible(folders)
        for file in visible(files):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in SUFFIXES:
                found.append(os.path.join(here, file))
            else:
                left_out[suffix or "without suffix"] += 1
    return sorted(found), left_out


def visible(names: Iterable[str]) -> list[str]:
    """The names that do not begin with a dot, as those of hidden files do, and those that macOS adds."""
    return [name for name in names if not name.startswith(".")]


def _refuse(error: OSError):
    raise error
