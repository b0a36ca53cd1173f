"""The official implementation's numbers: the cases of ../shared/golden, and its NCHW arrays in NHWC."""

import functools
import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from repmlp_jax import RepMLP
from repmlp_jax.blocks.repmlpnet import RepMLPNetBlock
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.residual import BottleneckBlock, LightBlock
from repmlp_jax.models.resnet import RepMLPResNet

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


def state_and_input(name: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The training-time state_dict of a case and its input in NCHW, made by its recipe where they are not stored."""
    recipe = manifest()[name].get("recipe")
    if recipe is None:
        return part(name, "train"), tensors(name)["x"]
    made_by = runpy.run_path(str(FOLDER / recipe["file"]))
    state = made_by["recipe_state"](recipe["state_shapes"], recipe["seed"], recipe["gain"])
    assert made_by["recipe_crc"](state) == recipe["crc32_state"]
    return state, made_by["recipe_tensor"]("x", recipe["x_shape"], recipe["seed"], recipe["gain"])


def make_block(name: str, *, rngs, **options) -> RepMLP:
    """The block of a v1 case."""
    arguments = manifest()[name]["kwargs"]
    return RepMLP(arguments["in_channels"], arguments["out_channels"], **_of_repmlp(arguments), rngs=rngs, **options)


def make_model(name: str, *, rngs, **options):
    """The block or net of any other case."""
    case = manifest()[name]
    given, options = case["kwargs"], dict(rngs=rngs, **options)
    match case["constructor"]:
        case "repmlp_blocks.RepMLPLightBlock" | "repmlp_blocks.RepMLPBottleneckBlock":
            features = given["in_channels"], given["mid_channels"], given["out_channels"]
            if "r" in given:
                return BottleneckBlock(*features, r=given["r"], **_of_repmlp(given), **options)
            return LightBlock(*features, **_of_repmlp(given), **options)
        case "repmlp_resnet.RepMLPResNet":
            return RepMLPResNet(
                tuple(given["num_blocks"]),
                given["num_classes"],
                block=given["block_type"],
                image_size=(given["img_H"], given["img_W"]),
                partition_size=(given["h"], given["w"]),
                conv_kernels=tuple(given["reparam_conv_k"]),
                groups=(given["fc3_groups"],) * 2,
                r=tuple(given.get("bottleneck_r", (2, 4))),
                widths=tuple(given.get("channels", (256, 512, 1024, 2048))),
                **options,
            )
        case "repmlpnet.RepMLPBlock":
            return RepMLPNetBlock(
                given["in_channels"],
                partition_size=(given["h"], given["w"]),
                conv_kernels=tuple(given["reparam_conv_k"]),
                reduction=given["globalperceptron_reduce"],
                sharesets=given["num_sharesets"],
                **options,
            )
        case "repmlpnet.RepMLPNet":
            return RepMLPNet(
                tuple(given["num_blocks"]),
                tuple(given["channels"]),
                given["num_class"],
                partition_sizes=tuple(zip(given["hs"], given["ws"], strict=True)),
                sharesets=tuple(given["sharesets_nums"]),
                conv_kernels=tuple(given["reparam_conv_k"]),
                reduction=given["globalperceptron_reduce"],
                patch_size=tuple(given["patch_size"]),
                **options,
            )


def _of_repmlp(given):
    return dict(
        image_size=(given["H"], given["W"]),
        partition_size=(given["h"], given["w"]),
        conv_kernels=tuple(given["reparam_conv_k"] or ()),
        groups=given["fc3_groups"],
        reduction=given["fc1_fc2_reduction"],
    )
