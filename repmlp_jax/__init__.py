"""RepMLP for JAX: train fully-connected layers beside convolutions, run three fully-connected layers."""

from repmlp_jax.blocks import RepMLP
from repmlp_jax.fuse import fuse_params
from repmlp_jax.gated import RepMLPNetBlock
from repmlp_jax.interop.torch import from_torch, to_torch
from repmlp_jax.interop.torch_file import load_torch_file
from repmlp_jax.models import create_model, list_models
from repmlp_jax.models.cifar import PureMLP, WideConvNet
from repmlp_jax.models.face import FaceResNet
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.residual import BottleneckBlock, LightBlock
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.reparam import conv_to_fc
from repmlp_jax.report import fuse_report
from repmlp_jax.saved import load_model, save_model

__all__ = [
    "BottleneckBlock",
    "FaceResNet",
    "LightBlock",
    "PSPNet",
    "PureMLP",
    "RepMLP",
    "RepMLPNet",
    "RepMLPNetBlock",
    "RepMLPResNet",
    "WideConvNet",
    "conv_to_fc",
    "create_model",
    "from_torch",
    "fuse_params",
    "fuse_report",
    "list_models",
    "load_model",
    "load_torch_file",
    "save_model",
    "to_torch",
]
