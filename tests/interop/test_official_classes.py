"""Deployed files in the official code's own deploy classes. It is not in this repository; to run these tests:

git clone https://github.com/DingXiaoH/RepMLP v2 && git clone v2 v1 && git -C v1 checkout 4b3e347
REPMLP_JAX_OFFICIAL=v1:v2 python -m pytest tests/interop/test_official_classes.py
"""

import importlib
import os

import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, evaluate, random_input, randomised
from safetensors.numpy import load_file
from tolerance import ROUNDING_F32, assert_close

from repmlp_jax import RepMLPNet, RepMLPResNet, export_torch, fuse_params
from repmlp_jax.interop.torch import deployed

FOLDERS = os.environ.get("REPMLP_JAX_OFFICIAL", "")
pytestmark = pytest.mark.skipif(not FOLDERS, reason="REPMLP_JAX_OFFICIAL names no folders of the official code")


@pytest.fixture
def official(monkeypatch):
    """Imports a module of the official code."""
    pytest.importorskip("torch")
    for folder in FOLDERS.split(os.pathsep):
        monkeypatch.syspath_prepend(os.path.abspath(folder))
    return importlib.import_module


def run(net, file, images):
    import torch

    net.load_state_dict({key: torch.from_numpy(array) for key, array in load_file(file).items()})
    with torch.inference_mode():
        return net.eval()(torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())).numpy()


def test_a_deployed_repmlpnet(official, tmp_path):
    sizes = dict(partition_sizes=((4, 4), (2, 2)), sharesets=(2, 4))
    model = randomised(abstract(RepMLPNet, (1, 1), (8, 16), 5, **sizes, image_size=(16, 16), param_dtype=jnp.float32))
    export_torch(deployed(model), tmp_path / "net.safetensors")
    net = official("repmlpnet").RepMLPNet(
        num_class=5,
        num_blocks=(1, 1),
        channels=(8, 16),
        hs=(4, 2),
        ws=(4, 2),
        sharesets_nums=(2, 4),
        deploy=True,
    )
    images = random_input(model, 3, dtype=jnp.float32)
    assert_close(run(net, tmp_path / "net.safetensors", images), evaluate(model, images), ROUNDING_F32)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["light", "bottleneck"])
def test_a_deployed_repmlp_resnet(official, tmp_path, block):
    sizes = dict(stage_sizes=(1, 2, 2, 1), num_classes=5, image_size=(64, 64), partition_size=(2, 2), groups=(4, 4))
    model = randomised(abstract(RepMLPResNet, block=block, conv_kernels=(1, 3), **sizes, param_dtype=jnp.float32))
    export_torch(fuse_params(model), tmp_path / "net.safetensors")
    net = official("repmlp_resnet").RepMLPResNet(
        num_blocks=[1, 2, 2, 1],
        num_classes=5,
        block_type=block,
        img_H=64,
        img_W=64,
        h=2,
        w=2,
        reparam_conv_k=(1, 3),
        fc1_fc2_reduction=1,
        fc3_groups=4,
        deploy=True,
    )
    images = random_input(model, 3, dtype=jnp.float32)
    assert_close(run(net, tmp_path / "net.safetensors", images), evaluate(model, images), ROUNDING_F32)
