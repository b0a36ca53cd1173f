"""Layer → block → net: the pure MLP and the Wide ConvNet, small to run and in full size on paper."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import abstract, build, quick_jit, random_input
from flax import nnx
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax import RepMLP, fuse_params
from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.models.cifar import ABLATIONS, PureMLP, WideConvNet

SMALL = dict(image_size=(8, 8), widths=(4, 6))
MODELS = {
    ablation or "pure mlp": functools.partial(
        PureMLP, **SMALL, partition_size=(4, 4), conv_kernels=(1, 3), ablation=ablation
    )
    for ablation in (None, *ABLATIONS)
} | {"wide convnet": functools.partial(WideConvNet, **SMALL)}


@functools.cache
def compiled_outputs(name, param_dtype):
    model = build(MODELS[name], param_dtype=param_dtype)

    @(quick_jit if param_dtype == jnp.float64 else jax.jit)
    def outputs(model, x):
        return nnx.view(model, use_running_average=True)(x), fuse_params(model)(x)

    return outputs(model, random_input(model, dtype=param_dtype))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("no_local", "no_global", "fc3_conv9") else ())
        for name in MODELS
    ],
)
def test_every_model_fuses_exactly(name):
    expected, actual = compiled_outputs(name, jnp.float64)
    assert expected.shape == (2, 10)
    assert_close(actual, expected, ROUNDING_F64)


@pytest.mark.slow
def test_the_pure_mlp_fuses_to_rounding_in_float32():
    expected, actual = compiled_outputs("pure mlp", jnp.float32)
    assert_close(actual, expected, 4 * ROUNDING_F32)  # a net of four blocks


@pytest.mark.parametrize("name", MODELS)
def test_a_fused_net_holds_no_norm_and_no_branch(name):
    fused = nnx.eval_shape(fuse_params, abstract(MODELS[name]))
    kinds = {type(node) for _, node in nnx.iter_graph(fused)}
    assert not kinds & {RepMLP, ConvBN, BatchNorm, nnx.BatchNorm}
    assert not jax.tree.leaves(nnx.state(fused, nnx.BatchStat))
    convolutions = [node for _, node in nnx.iter_graph(fused) if isinstance(node, nnx.Conv)]
    expected = {"wide convnet": {(1, 1), (3, 3)}, "conv9": {(1, 1), (9, 9)}}.get(name, {(1, 1)})
    assert {tuple(conv.kernel_size) for conv in convolutions} == expected
    assert all(conv.bias is not None for conv in convolutions)
    assert (FusedRepMLP in kinds) == (name not in ("wide convnet", "conv9"))


def blocks_of(model):
    return [layer for stage in model.stages for layer in stage if isinstance(layer, RepMLP)]


def test_the_full_size_pure_mlp():
    model = abstract(PureMLP)
    blocks = blocks_of(model)
    assert [block.input_shape for block in blocks] == [(32, 32, 16)] * 2 + [(16, 16, 32)] * 2 + [(8, 8, 64)] * 2
    assert [block.global_perceptron is None for block in blocks] == [False] * 4 + [True] * 2
    assert blocks[0].global_perceptron.fc1.kernel.shape == (4 * 4 * 16, 256)
    assert [block.partition_perceptron.kernel.shape for block in blocks[::2]] == [
        (2, 8 * 8 * channels // 2, 8 * 8 * channels // 2) for channels in (16, 32, 64)
    ]
    kernels = {name: branch.conv.kernel.shape for name, branch in blocks[-1].local_perceptron.items()}
    assert kernels == {f"{k}x{k}": (k, k, 32, 64) for k in (1, 3, 5, 7)}
    pointwise = [layer.conv.kernel.shape for stage in model.stages for layer in stage if isinstance(layer, ConvBN)]
    assert model.embedding.conv.kernel.shape == (1, 1, 3, 16)
    assert pointwise == [(1, 1, *pair) for pair in [(16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (64, 64)]]
    assert model.head.kernel.shape == (64, 10)
    assert jax.eval_shape(
        lambda model, x: model(x), model, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    ).shape == (2, 10)


def test_the_full_size_wide_convnet():
    model = abstract(WideConvNet)
    kernels = [layer.conv.kernel.shape for stage in model.stages for layer in stage]
    assert kernels[::2] == [(3, 3, width, width) for width in (32, 32, 64, 64, 128, 128)]
    assert kernels[1::2] == [
        (1, 1, *pair) for pair in [(32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128)]
    ]


ABLATED_BLOCKS = [
    ("no_local", [], True, [True, True, True, True, False, False]),
    ("no_global", [1, 3, 5, 7], True, [False] * 6),
    ("fc3_conv9", [1, 3, 5, 7, 9], False, [True, True, True, True, False, False]),
]


@pytest.mark.parametrize(("ablation", "kernels", "has_fc3", "has_global"), ABLATED_BLOCKS)
def test_what_an_ablation_leaves_of_the_blocks(ablation, kernels, has_fc3, has_global):
    blocks = blocks_of(abstract(PureMLP, ablation=ablation))
    for block in blocks:
        assert list(block.local_perceptron) == [f"{k}x{k}" for k in kernels]
        assert (block.partition_perceptron is not None) == has_fc3
    assert [block.global_perceptron is not None for block in blocks] == has_global


def test_conv9_has_a_convolution_in_every_blocks_place():
    model = abstract(PureMLP, ablation="conv9")
    assert not blocks_of(model)
    assert [layer.conv.kernel.shape for layer in model.stages[1]][::2] == [(9, 9, 16, 32)] * 2


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="ablation='no_fc3' must be one of no_local, no_global, fc3_conv9, conv9"):
        PureMLP(ablation="no_fc3", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(8, 6\) cannot be halved 2 times.*multiples of 4"):
        WideConvNet(image_size=(8, 6), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"\(8, 8\) does not divide image_size \(12, 12\)"):
        PureMLP(image_size=(12, 12), widths=(4,), rngs=nnx.Rngs(0))


def test_training_learns_a_batch_and_compiles_once():
    make = functools.partial(PureMLP, image_size=(8, 8), widths=(6,), partition_size=(4, 4), conv_kernels=(3,))
    model = build(make, param_dtype=jnp.float32)
    optimizer = nnx.Optimizer(model, optax.sgd(0.1, momentum=0.9), wrt=nnx.Param)
    x = random_input(model, batch=8, dtype=jnp.float32)
    labels = jnp.arange(8)

    @nnx.jit
    @chex.assert_max_traces(n=1)
    def step(model, optimizer, x):
        def loss(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()

        value, gradients = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradients)
        return value

    before = nnx.state(nnx.clone(model))
    losses = [float(step(model, optimizer, x)) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    changed = jax.tree.map(lambda one, other: bool(np.any(one != other)), before, nnx.state(model))
    assert all(jax.tree.leaves(changed))
