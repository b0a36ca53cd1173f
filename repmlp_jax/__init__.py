"""RepMLP for JAX: train fully-connected layers beside convolutions, run three fully-connected layers."""

from typing import TYPE_CHECKING

from repmlp_jax.blocks.repmlp import RepMLP
from repmlp_jax.blocks.repmlpnet import RepMLPNetBlock
from repmlp_jax.deploy.onnx import export_onnx
from repmlp_jax.deploy.onnx_int8 import export_onnx_int8
from repmlp_jax.deploy.program import export_model, load_exported
from repmlp_jax.deploy.torch import export_torch
from repmlp_jax.fusing.algebra import conv_to_fc
from repmlp_jax.fusing.fuse import fuse_params
from repmlp_jax.fusing.linen import fuse_variables
from repmlp_jax.interop.pretrained import create_model
from repmlp_jax.interop.report import fuse_report
from repmlp_jax.interop.torch import from_torch, to_torch
from repmlp_jax.interop.torch_file import load_torch_file
from repmlp_jax.models.astype import astype
from repmlp_jax.models.cifar import PureMLP, WideConvNet
from repmlp_jax.models.face import FaceResNet
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.registry import list_models, register_model, register_savable
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.residual import BottleneckBlock, LightBlock
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.quantisation.quantise import quantise_params
from repmlp_jax.storage.configuration import data_configuration
from repmlp_jax.storage.models import load_model, save_model
from repmlp_jax.version import __version__

if TYPE_CHECKING:
    from repmlp_jax.tasks import train_and_evaluate

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
    "__version__",
    "astype",
    "conv_to_fc",
    "create_model",
    "data_configuration",
    "export_model",
    "export_onnx",
    "export_onnx_int8",
    "export_torch",
    "from_torch",
    "fuse_params",
    "fuse_report",
    "fuse_variables",
    "list_models",
    "load_exported",
    "load_model",
    "load_torch_file",
    "quantise_params",
    "register_model",
    "register_savable",
    "save_model",
    "to_torch",
    "train_and_evaluate",
]


def __getattr__(name: str):
    """Imports what needs libraries that a model alone does not, when it is asked for."""
    if name == "train_and_evaluate":
        from repmlp_jax.tasks import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
