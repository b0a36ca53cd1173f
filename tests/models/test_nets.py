"""RepMLP-ResNet and RepMLPNet, small and with random weights and statistics: fusing changes nothing, in float64."""

import functools

import jax
import jax.numpy as jnp
import pytest
from cases import abstract, apply, random_array, random_input, randomised, train
from flax import nnx
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import RepMLPNet, RepMLPResNet, create_model, fuse_params, load_model, save_model
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.interop.torch import deployed, from_torch, to_torch

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


@functools.cache
def build(name, **options):
    """A net that tests leave as it is, and images."""
    if name != "RepMLPNet":
        options = dict(groups=(2, 2)) | options
    model = randomised(abstract(NETS[name], param_dtype=jnp.float64, **options))
    model.eval()
    return model, random_input(model)


@pytest.mark.parametrize(
    "name", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("light", "bottleneck")), "RepMLPNet"]
)
def test_fusing_is_exact_and_complete(name):
    model, x = build(name)
    fused = fuse_params(model)
    assert_close(apply(fused, x), apply(model, x), ROUNDING_F64)
    assert not any(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(fused))


@pytest.mark.parametrize(
    ("block", "partition_size", "image_size"),
    [
        pytest.param("base", (7, 7), (48, 64), marks=pytest.mark.slow),
        ("base", (7, 7), (33, 50)),
        ("light", (3, 4), (48, 64)),
        pytest.param("light", (2, 3), (26, 44), marks=pytest.mark.slow),
    ],
)
def test_a_resnet_takes_every_size_whose_maps_its_partitions_divide(block, partition_size, image_size):
    sizes = RESNET | dict(partition_size=partition_size, image_size=image_size)
    model = abstract(RepMLPResNet, block=block, groups=(2, 2), **sizes)
    model.eval()
    images = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    for net in (model, nnx.eval_shape(fuse_params, model)):
        assert jax.eval_shape(lambda net, images: net(images), net, images).shape == (2, 5)


def test_a_resnet_names_the_sizes_whose_maps_its_partitions_divide():
    message = r"image_size \(48, 64\) makes maps of height \{'c3': 6, 'c4': 3\}.*heights that work are \[32, 57\]; pad"
    with pytest.raises(ValueError, match=message):
        RepMLPResNet(block="light", **RESNET | dict(image_size=(48, 64)), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", [pytest.param("light", marks=pytest.mark.slow), "bottleneck", "RepMLPNet"])
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
    x = jnp.asarray(random_array(2, 32, 8, 3))
    assert_close(apply(fuse_params(model), x), apply(model, x), ROUNDING_F64)
    with pytest.raises(ValueError, match=r"of shape \(N, 16·h, 8·w, 3\) and was called with \(1, 24, 8, 3\)"):
        model(jnp.zeros((1, 24, 8, 3)))


def test_repmlpnet_pads_maps_that_its_partitions_do_not_divide():
    model, _ = build("RepMLPNet", pad=True)
    x = jnp.asarray(random_array(2, 24, 16, 3))
    assert_close(apply(fuse_params(model), x), apply(model, x), ROUNDING_F64)


def test_stochastic_depth_leaves_whole_branches_out_while_training():
    model, x = build("RepMLPNet", stochastic_depth=0.9)
    unit = model.stages[1][1]
    assert [unit.drop.rate for stage in model.stages for unit in stage if unit.drop is not None] == [0.45, 0.9]
    y = jnp.ones((200, 2, 1, 3), jnp.float64)
    unit.drop.train()
    dropped = unit.drop(y)
    kept = (dropped > 0).all((1, 2, 3))
    assert (jnp.isclose(dropped, 0) | jnp.isclose(dropped, 10)).all()
    assert (kept == (dropped > 0).any((1, 2, 3))).all()
    assert 0.02 < kept.mean() < 0.25
    # It is of training alone: evaluation, fusing and saving do not see it.
    unit.drop.eval()
    plain, _ = build("RepMLPNet")
    assert_close(apply(model, x), apply(plain, x), ROUNDING_F64)
    assert_close(apply(fuse_params(model), x), apply(plain, x), ROUNDING_F64)
    assert not jax.tree.leaves(nnx.state(fuse_params(model), nnx.RngState))
    with pytest.raises(ValueError, match="stochastic_depth=1 must be a probability"):
        build("RepMLPNet", stochastic_depth=1)


@pytest.mark.slow
def test_a_net_with_stochastic_depth_is_saved_and_trains_on(tmp_path):
    model, x = build("RepMLPNet", stochastic_depth=0.5)
    save_model(tmp_path / "net", model)
    loaded = load_model(tmp_path / "net")
    assert_close(apply(loaded, x), apply(model, x), 0.0)
    loaded.train()
    first, second = train(loaded, x), train(loaded, x)
    assert jnp.abs(first - second).max() > 0


@pytest.mark.slow
def test_a_published_net_runs_and_fuses_in_float32():
    model = create_model("RepMLPNet-T224", rngs=nnx.Rngs(0))
    # Norms that are not identities; the weights stay as they are initialised, or activations grow beyond float32.
    nnx.update(model, nnx.state(randomised(model), nnx.BatchStat))
    model.eval()
    x = random_input(model, dtype=jnp.float32)
    forward = jax.jit(lambda model, x: model(x))
    expected, actual = forward(model, x), forward(fuse_params(model), x)
    assert expected.shape == (2, 1000)
    # A rounding for each of some fifty layers, which add up like a random walk.
    assert_close(actual, expected, 7 * ROUNDING_F32)
