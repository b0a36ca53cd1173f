"""RepMLP-ResNet and RepMLPNet, small and with random weights and statistics: fusing changes nothing, in float64."""

import jax
import jax.numpy as jnp
import pytest
from cases import apply, randomised
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import RepMLPNet, RepMLPResNet, fuse_params
from repmlp_jax.interop.torch import deployed, from_torch, to_torch
from repmlp_jax.layers import BatchNorm

RESNET = dict(
    stage_sizes=(1, 2, 2, 1), num_classes=5, image_size=(32, 32), partition_size=(2, 2), widths=(16, 32, 64, 64)
)
NETS = {
    "light": lambda **options: RepMLPResNet(block="light", **RESNET, **options),
    "bottleneck": lambda **options: RepMLPResNet(block="bottleneck", **RESNET, **options),
    "RepMLPNet": lambda **options: RepMLPNet(
        (1, 2), (8, 16), 5, partition_sizes=((4, 2), (2, 1)), sharesets=(2, 4), **options
    ),
}
every_net = pytest.mark.parametrize("name", NETS)


def build(name, **options):
    if name != "RepMLPNet":
        options = dict(groups=(2, 2)) | options
    model = randomised(nnx.eval_shape(lambda: NETS[name](param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options)))
    model.eval()
    return model, jax.random.normal(jax.random.key(1), (2, *model.input_shape), jnp.float64)


@every_net
def test_fusing_is_exact_and_complete(name):
    model, x = build(name)
    fused = fuse_params(model)
    assert_close(apply(fused, x), apply(model, x), ROUNDING_F64)
    assert not any(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(fused))


@every_net
def test_official_weights_go_out_and_come_back(name):
    model, x = build(name)
    assert_identical(from_torch(model, to_torch(model)), model)
    # The official conversion of RepMLPNet leaves norms; loaded into the trained model, it is fused the rest of the way.
    converted = from_torch(model, to_torch(deployed(model)))
    assert_close(apply(converted, x), apply(model, x), ROUNDING_F64)
    if name == "RepMLPNet":
        assert_close(apply(fuse_params(converted), x), apply(model, x), ROUNDING_F64)
        with pytest.raises(TypeError, match="RepMLPNet has no official PyTorch layout for"):
            to_torch(fuse_params(model))


def test_repmlpnet_runs_at_every_resolution_that_its_partitions_divide():
    model, _ = build("RepMLPNet")
    assert model.input_shape == (16, 8, 3)
    x = jax.random.normal(jax.random.key(1), (2, 32, 8, 3), jnp.float64)
    assert_close(apply(fuse_params(model), x), apply(model, x), ROUNDING_F64)
    with pytest.raises(ValueError, match=r"partition_size \(4, 2\) does not divide image_size \(5, 2\)"):
        model(jnp.zeros((1, 20, 8, 3)))
