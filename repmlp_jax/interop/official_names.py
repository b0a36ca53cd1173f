"""The official PyTorch code's names for the parts of each module, and its order of the axes of each array."""

import functools
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from flax import nnx

from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import FusedRepMLP, RepMLP
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, Gate, RepMLPNetBlock
from repmlp_jax.models.repmlpnet import RepMLPNet, RepMLPNetUnit
from repmlp_jax.models.residual import BaseBlock, BottleneckBlock, LightBlock
from repmlp_jax.models.resnet import RepMLPResNet


class OfficialArray(NamedTuple):
    """The official name of an array, and its axes here and there as an einops pattern, and sizes of joined axes."""

    name: str
    axes: str
    sizes: Mapping[str, int] = MappingProxyType({})


@functools.singledispatch
def official_names(module) -> dict[str, str | OfficialArray]:
    """Dotted name of each part of a module → the official prefix of a module, or the OfficialArray of an array."""
    return {}


@official_names.register
def _(module: BatchNorm):
    return _norm("", "c -> c")


def _norm(name, axes, **sizes):
    return {
        "scale": OfficialArray(f"{name}weight", axes, sizes),
        "bias": OfficialArray(f"{name}bias", axes, sizes),
        "mean": OfficialArray(f"{name}running_mean", axes, sizes),
        "var": OfficialArray(f"{name}running_var", axes, sizes),
        "batches": OfficialArray(f"{name}num_batches_tracked", " -> "),
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


def _fc3(partitioning):
    h, w = partitioning.partition_size
    return OfficialArray("fc3.weight", "g (h w c) (y x o) -> (g o y x) (c h w) 1 1", dict(h=h, w=w, y=h, x=w))


def _global_perceptron(partitioning):
    m = math.prod(partitioning.counts)
    return {
        "global_perceptron.fc1.kernel": OfficialArray("fc1_fc2.fc1.weight", "(m c) hidden -> hidden (c m)", dict(m=m)),
        "global_perceptron.fc1.bias": OfficialArray("fc1_fc2.fc1.bias", "hidden -> hidden"),
        "global_perceptron.fc2.kernel": OfficialArray("fc1_fc2.fc2.weight", "hidden (m c) -> (c m) hidden", dict(m=m)),
        "global_perceptron.fc2.bias": OfficialArray("fc1_fc2.fc2.bias", "(m c) -> (c m)", dict(m=m)),
    }


@official_names.register
def _(module: RepMLP):
    norm = _norm("fc3_bn.", "g 1 (p o) -> (g o p)", p=math.prod(module.partitioning.partition_size))
    return {
        **_global_perceptron(module.partitioning),
        "global_perceptron.norm": "avg.bn.",
        "partition_perceptron.kernel": _fc3(module.partitioning),
        **{f"partition_perceptron.norm.{name}": array for name, array in norm.items()},
        **_local_perceptron(module),
    }


@official_names.register
def _(module: FusedRepMLP):
    pixels = math.prod(module.partitioning.partition_size)
    return {
        **_global_perceptron(module.partitioning),
        "kernel": _fc3(module.partitioning),
        "bias": OfficialArray("fc3.bias", "g (p o) -> (g o p)", dict(p=pixels)),
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


SHARED_FC3 = OfficialArray("fc3.weight", "s p q -> (s q) p 1 1")


@official_names.register
def _(module: Gate):
    # The official code has 1×1 convolutions here.
    kernels = {f"{fc}.kernel": OfficialArray(f"{fc}.weight", "i o -> o i 1 1") for fc in ("fc1", "fc2")}
    return kernels | {f"{fc}.bias": OfficialArray(f"{fc}.bias", "o -> o") for fc in ("fc1", "fc2")}


@official_names.register
def _(module: RepMLPNetBlock):
    return {
        "gate": "gp.",
        "kernel": SHARED_FC3,
        "norm": "fc3_bn.",
        **_local_perceptron(module),
    }


@official_names.register
def _(module: FusedRepMLPNetBlock):
    return {
        "gate": "gp.",
        "kernel": SHARED_FC3,
        "bias": OfficialArray("fc3.bias", "s p -> (s p)"),
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
