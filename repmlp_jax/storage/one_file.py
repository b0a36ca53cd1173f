"""Saved models in one `.safetensors` file: the arrays, and in its metadata the description of the model."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

SUFFIX = ".safetensors"
ENTRY = "repmlp_jax"


def write(path: Path, arrays: dict[str, np.ndarray], description: dict):
    """Writes the arrays and the description, which JSON can hold, to a file."""
    save_file(arrays, path, metadata={ENTRY: json.dumps(description)})


def description_in(path: Path) -> str | None:
    """The description in a file as JSON; None if the file does not exist, or is not a safetensors file that has one."""
    if not path.is_file():  # a pipe might never end
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get(ENTRY)
    except (OSError, SafetensorError):
        return None
