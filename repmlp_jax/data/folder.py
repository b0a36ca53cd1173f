"""Where TFDS datasets are."""

import os
from pathlib import Path


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of TFDS datasets: the given one, else the environment's TFDS_DATA_DIR, else TFDS's default.

    TFDS itself reads TFDS_DATA_DIR once, when it is imported; a variable set later would be ignored.
    """
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
