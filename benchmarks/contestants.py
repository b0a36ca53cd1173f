"""What our nets are measured beside: the official PyTorch ones with the same weights, and what else a user would run.

Nothing of the official code is in this repository: it is imported from folders that the command names, one with
`repmlpnet.py` (the official repository as it is), one with `repmlp.py`, `repmlp_blocks.py` and `repmlp_resnet.py` (its
commit 4b3e347).
"""

import copy
import sys

import numpy as np
import torch
from flax import nnx

from repmlp_jax import to_torch
from repmlp_jax.interop.official_names import official_names
from repmlp_jax.models.cifar import PureMLP
from repmlp_jax.models.registry import MODELS


def official(name: str, model: nnx.Module, folders: list[str]) -> torch.nn.Module:
    """The official net of that name in evaluation mode, with the weights of ours."""
    sys.path[:0] = [folder for folder in folders if folder not in sys.path]
    net = _make_official(name)
    net.load_state_dict({key: torch.from_numpy(array.copy()) for key, array in to_torch(model).items()})
    return net.eval()


def convert(net: torch.nn.Module):
    """Converts an official net in place, by the official conversion."""
    with torch.no_grad():
        if hasattr(net, "locality_injection"):
            net.locality_injection()
        else:
            from repmlp import repmlp_model_convert

            repmlp_model_convert(net, do_copy=False)


def converted(net: torch.nn.Module) -> torch.nn.Module:
    """A converted copy of an official net."""
    net = copy.deepcopy(net)
    convert(net)
    return net


def torch_forward(net: torch.nn.Module, images: np.ndarray):
    """A function that applies the net to NHWC images, brought to PyTorch's NCHW once."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

    def forward():
        with torch.inference_mode():
            return net(x)

    return forward


def efficientnet(name: str = "b1") -> torch.nn.Module:
    """An EfficientNet of Hugging Face's transformers, with random weights."""
    from transformers import EfficientNetConfig, EfficientNetForImageClassification

    # Width, depth and resolution of the paper's table (arXiv 1905.11946).
    widths_and_depths = {"b0": (1.0, 1.0, 224), "b1": (1.0, 1.1, 240), "b2": (1.1, 1.2, 260)}
    width, depth, resolution = widths_and_depths[name]
    config = EfficientNetConfig(
        width_coefficient=width,
        depth_coefficient=depth,
        image_size=resolution,
        hidden_dim=round(1280 * width / 8) * 8,
        num_labels=1000,
    )
    return EfficientNetForImageClassification(config).eval()


class OfficialPureMLP(torch.nn.Module):
    """Table 1's pure MLP, of which the official repository has the blocks but not the net."""

    def __init__(self, widths=(16, 32, 64), image_size=32, partition=8, num_classes=10):
        super().__init__()
        from repmlp import RepMLP
        from repmlp_blocks import ConvBNReLU

        self.embedding = ConvBNReLU(3, widths[0], 1)
        stages = []
        for stage, (width, following) in enumerate(zip(widths, (*widths[1:], widths[-1]), strict=True)):
            side = image_size // 2**stage
            mixers = [
                RepMLP(width, width, side, side, partition, partition, reparam_conv_k=(1, 3, 5, 7), fc3_groups=2)
                for _ in range(2)
            ]
            layers = mixers[0], ConvBNReLU(width, width, 1), mixers[1], ConvBNReLU(width, following, 1)
            stages.append(torch.nn.ModuleList(layers))
        self.stages = torch.nn.ModuleList(stages)
        self.head = torch.nn.Linear(widths[-1], num_classes)

    def forward(self, x):
        """The logits of NCHW images."""
        x = self.embedding(x)
        for index, (mixer1, fc1, mixer2, fc2) in enumerate(self.stages):
            if index:
                x = torch.nn.functional.max_pool2d(x, 2)
            x = fc1(torch.relu(mixer1(x)))
            x = fc2(torch.relu(mixer2(x)))
        return self.head(x.mean((2, 3)))


@official_names.register
def _(module: PureMLP):
    layers = {f"stages.{stage}.{layer}": f"stages.{stage}.{layer}." for stage in range(3) for layer in range(4)}
    return {"embedding": "embedding.", **layers, "head": "head."}


def _make_official(name):
    if name == "pure_mlp":
        return OfficialPureMLP()
    if name.startswith("RepMLPNet"):
        import repmlpnet

        return getattr(repmlpnet, f"create_{name.replace('-', '_')}")(deploy=False)
    from repmlp_resnet import RepMLPResNet

    arguments = MODELS[name][1]
    groups = set(arguments.get("groups", (4,)))
    if len(groups) > 1 or "image_size" in arguments:
        raise ValueError(f"the official code has no {name}: its stages have one number of groups, at 224×224")
    return RepMLPResNet(
        num_blocks=[3, 4, 6, 3],
        num_classes=1000,
        block_type=arguments["block"],
        img_H=224,
        img_W=224,
        h=7,
        w=7,
        reparam_conv_k=(1, 3, 5),
        fc1_fc2_reduction=1,
        fc3_groups=groups.pop(),
        deploy=False,
        bottleneck_r=(2, 4),
    )
