"""FaceResNet and RepMLP-FaceRes: small to run and in full size on paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, build, evaluate, quick_jit, random_input
from flax import nnx
from tolerance import ROUNDING_BF16, ROUNDING_F32, ROUNDING_F64, assert_close, assert_identical, assert_trees_close

from repmlp_jax import fuse_params, load_model, save_model
from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.interop.report import fuse_report
from repmlp_jax.models.arguments import arguments_from_text
from repmlp_jax.models.face import FaceResNet, unit_length
from repmlp_jax.models.registry import MODELS
from repmlp_jax.models.residual import BaseBlock, BottleneckBlock

SMALL = dict(
    stage_sizes=(2, 2, 1),
    embedding_features=6,
    image_size=(32, 16),
    partition_size=(4, 2),
    conv_kernels=(1, 3),
    groups=2,
    widths=(8, 12, 16),
    mid_widths=(4, 8, 8),
    stem_features=4,
    in_features=1,
)


@functools.cache
def small(block="bottleneck", **options):
    return build(functools.partial(FaceResNet, block=block, **SMALL), **options)


def full_size(block, **options):
    return abstract(FaceResNet, block=block, **options)


def outputs(model, x):
    return nnx.view(model, use_running_average=True)(x), fuse_params(model)(x)


@pytest.mark.parametrize("block", [pytest.param("base", marks=pytest.mark.slow), "bottleneck"])
def test_fusing_is_exact_and_complete(block):
    model = small(block)
    expected, actual = quick_jit(outputs)(model, random_input(model))
    assert expected.shape == (2, 6)
    assert_close(actual, expected, ROUNDING_F64)
    fused = nnx.eval_shape(fuse_params, model)
    kinds = {type(node) for _, node in nnx.iter_graph(fused)}
    assert not kinds & {ConvBN, BatchNorm}
    assert (FusedRepMLP in kinds) == (block == "bottleneck")
    assert not jax.tree.leaves(nnx.state(fused, nnx.BatchStat))


@pytest.mark.slow
def test_it_fuses_to_rounding_in_float32():
    model = small(param_dtype=jnp.float32)
    expected, actual = jax.jit(outputs)(model, random_input(model, dtype=jnp.float32))
    # Some twenty layers, whose roundings add up like a random walk.
    assert_close(actual, expected, 5 * ROUNDING_F32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float64, ROUNDING_F64), (jnp.float32, ROUNDING_F32), (jnp.bfloat16, ROUNDING_F32)]
)
def test_embeddings_have_length_one_in_float32_or_wider(dtype, tolerance):
    model = small(param_dtype=jnp.float64 if dtype == jnp.float64 else jnp.float32, dtype=dtype)
    embeddings = evaluate(model, random_input(model, dtype=dtype))
    assert embeddings.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert_close(jnp.linalg.norm(embeddings, axis=-1), np.ones(2), tolerance)
    if dtype == jnp.bfloat16:
        # Blocks that round to bfloat16, one after another, and a sum of squares that divides by less than the largest.
        wide = evaluate(small(param_dtype=jnp.float32), random_input(model, dtype=jnp.float32))
        assert_close(embeddings, wide, 2 * ROUNDING_BF16)


def test_unit_length_keeps_directions_and_has_a_finite_gradient_at_zero():
    vectors = jnp.asarray([[3.0, -4.0], [3e-8, -4e-8], [3e8, -4e8]], jnp.float32)
    assert_close(unit_length(vectors), np.broadcast_to([0.6, -0.8], (3, 2)), ROUNDING_F32)
    zero = jnp.zeros((1, 2), jnp.float32)
    assert (unit_length(zero) == 0).all()
    assert jnp.isfinite(quick_jit(jax.grad(lambda x: unit_length(x).sum()))(zero)).all()
    along = quick_jit(jax.grad(lambda x: unit_length(x) @ jnp.asarray([0.6, -0.8])))(jnp.asarray([3.0, -4.0]))
    assert_close(along, np.zeros(2), ROUNDING_F64, scale=1.0)


def test_repmlp_faceres_has_repmlp_where_the_paper_says():
    model = full_size("bottleneck")
    assert model.input_shape == (96, 96, 3)
    assert [[type(block) for block in stage] for stage in model.stages] == [
        [BaseBlock, BottleneckBlock, BottleneckBlock],
        [BaseBlock, BottleneckBlock],
        [BaseBlock, BottleneckBlock],
        [BaseBlock, BaseBlock],
    ]
    blocks = [block.repmlp for stage in model.stages for block in stage if isinstance(block, BottleneckBlock)]
    # The 3×3 convolutions' 128, 256 and 512 channels over r = 2, in partitions of 6×6.
    assert [block.input_shape for block in blocks] == [(24, 24, 64)] * 2 + [(12, 12, 128), (6, 6, 256)]
    assert [block.partitioning.counts for block in blocks] == [(4, 4)] * 2 + [(2, 2), (1, 1)]
    assert blocks[0].partition_perceptron.kernel.shape == (4, 6 * 6 * 16, 6 * 6 * 16)
    assert list(blocks[0].local_perceptron) == ["1x1", "3x3", "5x5"]


def test_faceresnet_is_as_wide_as_the_paper_says():
    model = full_size("base")
    assert [len(stage) for stage in model.stages] == [3, 2, 2, 2]
    for stage, width in zip(model.stages, (128, 256, 512, 1024), strict=True):
        assert all(block.conv2.conv.kernel.shape == (3, 3, width, width) for block in stage)
        assert all(block.conv3.conv.out_features == width for block in stage)
    assert model.head.conv.kernel.shape == (1, 1, 1024, 512)


@pytest.mark.slow
def test_the_report_counts_what_fusing_spares():
    report = fuse_report(full_size("bottleneck"))
    assert not any(block.kept for block in report.blocks)
    assert report.parameters[1] < report.parameters[0]
    assert report.macs[1] < report.macs[0]
    macs = {block.path: block.macs for block in report.blocks}
    # 48·48 windows of 7·7·3 pixels for 64 channels, with no branch to spare.
    assert macs["stem"] == (48 * 48 * 7 * 7 * 3 * 64,) * 2
    # One partition, 4 groups of FC3 from 36·64 to 36·64 features, and before fusing three convolutions beside it.
    assert macs["stages.2.1.repmlp"] == (4 * (36 * 64) ** 2 + (1 + 9 + 25) * 36 * 64 * 256, 4 * (36 * 64) ** 2)


def test_its_arguments_build_it_again():
    model = small()
    again = abstract(FaceResNet, **arguments_from_text(model.arguments))
    assert again.arguments == model.arguments
    assert nnx.graphdef(again) == nnx.graphdef(model)


@pytest.mark.slow
def test_rematerialising_changes_neither_gradients_nor_statistics():
    model = small()

    def outcome(model, x):
        model = nnx.clone(model)
        return model(x)[:, 0].sum(), nnx.state(model, nnx.BatchStat)

    gradient = quick_jit(jax.grad(outcome, has_aux=True, allow_int=True))
    expected, expected_statistics = gradient(model, random_input(model, batch=4))
    model = nnx.clone(model)
    model.rematerialise = True
    actual, statistics = gradient(model, random_input(model, batch=4))
    actual, expected = (nnx.state(gradients, nnx.Param) for gradients in (actual, expected))
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert_trees_close(actual, expected, ROUNDING_F64, scale)
    assert_trees_close(statistics, expected_statistics, ROUNDING_F64)


def test_wrong_arguments_are_named():
    def make(**options):
        abstract(FaceResNet, **SMALL | dict(block="bottleneck") | options)

    with pytest.raises(ValueError, match="block='light' must be one of base, bottleneck"):
        make(block="light")
    with pytest.raises(ValueError, match="name 3, 3 and 2 stages"):
        make(mid_widths=(4, 8))
    with pytest.raises(ValueError, match="name 0, 0 and 0 stages"):
        make(stage_sizes=(), widths=(), mid_widths=())
    with pytest.raises(ValueError, match=r"stage_sizes \(2, 0, 1\): every stage has at least"):
        make(stage_sizes=(2, 0, 1))
    with pytest.raises(ValueError, match=r"\(32, 24\) must be multiples of 16, by which a stem and 3 stages"):
        make(image_size=(32, 24))
    with pytest.raises(ValueError, match="r=3 does not divide mid_features=4"):
        make(r=3)
    with pytest.raises(ValueError, match=r"partition_size \(3, 2\) does not divide image_size \(8, 4\)"):
        make(partition_size=(3, 2))


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True], ids=["trained", "fused"])
def test_it_is_saved_and_comes_back(fused, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "RepMLP-FaceRes", (FaceResNet, dict(block="bottleneck")))
    model = nnx.clone(small())
    model.eval()
    model = fuse_params(model) if fused else model
    save_model(tmp_path / "face", model)
    assert_identical(load_model(tmp_path / "face"), model)
