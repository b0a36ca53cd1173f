"""The folder of TFDS datasets."""

import os
from pathlib import Path

from repmlp_jax.local_path import local_path


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of TFDS datasets: the given one, or the environment's TFDS_DATA_DIR, or TFDS's default.

    TFDS itself reads TFDS_DATA_DIR only when it is imported, and would ignore a later change.
    """
    return local_path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
