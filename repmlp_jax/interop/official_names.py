"""The official PyTorch code's names for the parts of each module, and its order of the axes of each array."""

import functools
from typing import NamedTuple

from flax import nnx

from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import FusedRepMLP, RepMLP
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, Gate, RepMLPNetBlock
from repmlp_jax.models.repmlpnet import RepMLPNet, RepMLPNetUnit
from repmlp_jax.models.residual import BaseBlock, BottleneckBlock, LightBlock
from repmlp_jax.models.resnet import RepMLPResNet


class OfficialArray(NamedTuple):
    """The official name of an array, and its axes here and there as an einops pattern."""

    name: str
    axes: str


@functools.singledispatch
def official_names(module) -> dict[str, str | OfficialArray]:
    """Dotted name of each part of a module → the official prefix of a module, or the OfficialArray of an array."""
    return {}


@official_names.register
def _(module: BatchNorm):
    axes = {1: "c -> c", 4: "s 1 1 1 -> s", 5: "g 1 h w o -> (g o h w)"}[len(module.scale.shape)]
    return {
        "scale": OfficialArray("weight", axes),
        "bias": OfficialArray("bias", axes),
        "mean": OfficialArray("running_mean", axes),
        "var": OfficialArray("running_var", axes),
        "batches": OfficialArray("num_batches_tracked", " -> "),
    }


@official_names.register
def _(module: nnx.Conv):
    return {
        "kernel": OfficialArray("conv.weight", "kh kw i o -> o i kh kw"),
        "bias": OfficialArray("conv.bias", "o -> o"),
    }


@official_names.register
def _(module: nnx.Linear):
    return {"kernel": OfficialArray("weight", "i o -> o i"), "bias": OfficialArray("bias", "o -> o")}


@official_names.register
def _(module: ConvBN):
    return {"conv": "", "norm": "bn."}


FC3 = "g h w c y x o -> (g o y x) (c h w) 1 1"
GLOBAL_PERCEPTRON = {
    "global_perceptron.fc1.kernel": OfficialArray(
        "fc1_fc2.fc1.weight", "down across c hidden -> hidden (c down across)"
    ),
    "global_perceptron.fc1.bias": OfficialArray("fc1_fc2.fc1.bias", "hidden -> hidden"),
    "global_perceptron.fc2.kernel": OfficialArray(
        "fc1_fc2.fc2.weight", "hidden down across c -> (c down across) hidden"
    ),
    "global_perceptron.fc2.bias": OfficialArray("fc1_fc2.fc2.bias", "down across c -> (c down across)"),
}


@official_names.register
def _(module: RepMLP):
    return {
        **GLOBAL_PERCEPTRON,
        "global_perceptron.norm": "avg.bn.",
        "partition_perceptron.kernel": OfficialArray("fc3.weight", FC3),
        "partition_perceptron.norm": "fc3_bn.",
        **_local_perceptron(module),
    }


@official_names.register
def _(module: FusedRepMLP):
    return {
        **GLOBAL_PERCEPTRON,
        "kernel": OfficialArray("fc3.weight", FC3),
        "bias": OfficialArray("fc3.bias", "g h w o -> (g o h w)"),
    }


@official_names.register
def _(module: BaseBlock):
    return {name: f"{name}." for name in ("shortcut", "conv1", "conv2", "conv3")}


@official_names.register
def _(module: LightBlock):
    return {"shortcut": "shortcut.", **{name: f"light_{name}." for name in ("conv1", "repmlp", "conv3")}}


@official_names.register
def _(module: BottleneckBlock):
    names = ("conv1", "conv2", "repmlp", "conv4", "conv5")
    return {"shortcut": "shortcut.", **{name: f"btnk_{name}." for name in names}}


@official_names.register
def _(module: RepMLPResNet):
    return {"stem": "stage0.0.", **_stages(module, "stage{}.", first=1), "head": "linear."}


SHARED_FC3 = "s h w y x -> (s y x) (h w) 1 1"


@official_names.register
def _(module: Gate):
    # The official code has 1×1 convolutions here.
    kernels = {f"{fc}.kernel": OfficialArray(f"{fc}.weight", "i o -> o i 1 1") for fc in ("fc1", "fc2")}
    return kernels | {f"{fc}.bias": OfficialArray(f"{fc}.bias", "o -> o") for fc in ("fc1", "fc2")}


@official_names.register
def _(module: RepMLPNetBlock):
    return {
        "gate": "gp.",
        "kernel": OfficialArray("fc3.weight", SHARED_FC3),
        "norm": "fc3_bn.",
        **_local_perceptron(module),
    }


@official_names.register
def _(module: FusedRepMLPNetBlock):
    return {
        "gate": "gp.",
        "kernel": OfficialArray("fc3.weight", SHARED_FC3),
        "bias": OfficialArray("fc3.bias", "s h w -> (s h w)"),
    }


@official_names.register
def _(module: RepMLPNetUnit):
    return {
        "norm1": "prebn1.",
        "block": "repmlp_block.",
        "norm2": "prebn2.",
        "fc1": "ffn_block.ffn_fc1.",
        "fc2": "ffn_block.ffn_fc2.",
    }


@official_names.register
def _(module: RepMLPNet):
    return {
        "embedding": "conv_embedding.",
        **_stages(module, "stages.{}.", first=0),
        **{f"halvings.{index}": f"embeds.{index}." for index in range(len(module.halvings))},
        "head.norm": "head_norm.",
        "head.linear": "head.",
    }


def _local_perceptron(module):
    return {f"local_perceptron.{size}": f"repconv{size.partition('x')[0]}." for size in module.local_perceptron}


def _stages(module, name, first):
    return {
        f"stages.{stage}.{index}": f"{name.format(stage + first)}{index}."
        for stage, blocks in enumerate(module.stages)
        for index in range(len(blocks))
    }
