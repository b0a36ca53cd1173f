"""The official implementation's numbers: the cases of ../shared/golden, and its NCHW arrays in NHWC."""

import functools
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from repmlp_jax import RepMLP

FOLDER = Path(os.environ.get("REPMLP_GOLDEN_DIR", Path(__file__).parents[2] / "shared" / "golden"))


needed = pytest.mark.skipif(
    not (FOLDER / "manifest.json").exists(),
    reason=f"needs the golden cases in {FOLDER} (or set REPMLP_GOLDEN_DIR)",
)


@functools.cache
def manifest() -> dict[str, dict]:
    """Every case by its name; empty without the folder."""
    path = FOLDER / "manifest.json"
    return {case["name"]: case for case in json.loads(path.read_text())["cases"]} if path.exists() else {}


def names(constructor: str, kind: str) -> list[str]:
    """The names of all cases of one constructor and kind."""
    return [name for name, case in manifest().items() if (case["constructor"], case["kind"]) == (constructor, kind)]


@functools.cache
def tensors(name: str) -> dict[str, np.ndarray]:
    """All tensors of a case, as they are stored."""
    return load_file(FOLDER / manifest()[name]["file"])


def part(name: str, prefix: str) -> dict[str, np.ndarray]:
    """The tensors whose names start with the prefix and a dot, without both."""
    return {
        key.removeprefix(f"{prefix}."): value for key, value in tensors(name).items() if key.startswith(f"{prefix}.")
    }


def nhwc(array: np.ndarray) -> np.ndarray:
    """An NCHW array as NHWC."""
    return array.transpose(0, 2, 3, 1)


def make_block(name: str, *, rngs, **options) -> RepMLP:
    """The block of a v1 case."""
    arguments = manifest()[name]["kwargs"]
    return RepMLP(
        arguments["in_channels"],
        arguments["out_channels"],
        image_size=(arguments["H"], arguments["W"]),
        partition_size=(arguments["h"], arguments["w"]),
        conv_kernels=tuple(arguments["reparam_conv_k"] or ()),
        groups=arguments["fc3_groups"],
        reduction=arguments["fc1_fc2_reduction"],
        rngs=rngs,
        **options,
    )
