"""Blocks of others in `fuse_params`: a RepVGG block in a user's own net, and RepMLP on sequences."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, abstract, apply, build, evaluate, quick_jit, random_input
from flax import nnx
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import RepMLP, fuse_params, fuse_report, load_model, save_model
from repmlp_jax.blocks.layers import BatchNorm, ConvBN, with_kernel
from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.fusing import algebra
from repmlp_jax.models.arguments import arguments_text
from repmlp_jax.models.registry import MODELS

IMAGES = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 7, 4)))


class RepVGG(nnx.Module):
    """A RepVGG block (arXiv 2101.03697) of this library's bricks: 3×3, 1×1 and identity, each with its norm."""

    def __init__(self, features, *, groups=1, param_dtype=jnp.float32, rngs):
        options = dict(groups=groups, param_dtype=param_dtype, rngs=rngs)
        self.large = ConvBN(features, features, 3, **options)
        self.small = ConvBN(features, features, 1, **options)
        self.identity = BatchNorm(features, param_dtype=param_dtype)

    def __call__(self, x):
        return self.large(x) + self.small(x) + self.identity(x)

    def fused(self):
        large, small = self.large.conv.kernel[...], self.small.conv.kernel[...]
        # A 1×1 convolution that hands every channel on: in each group, an identity.
        *_, inputs, outputs = small.shape
        identity = jnp.tile(jnp.eye(inputs, dtype=small.dtype), outputs // inputs)[None, None]
        kernel, bias = algebra.merge_convolutions(
            [(large, self.large.norm), (small, self.small.norm), (identity, self.identity)]
        )
        return with_kernel(self.large.conv, kernel, bias)

    def folds(self):
        return {"small": "conv and norm added to large", "identity": "added to large as a convolution"}


class RepVGGOfFlax(nnx.Module):
    """The same of Flax's own layers, without `folds`."""

    def __init__(self, features, *, param_dtype=jnp.float32, rngs):
        options = dict(param_dtype=param_dtype, rngs=rngs)
        self.large = nnx.Conv(features, features, (3, 3), use_bias=False, **options)
        self.small = nnx.Conv(features, features, (1, 1), use_bias=False, **options)
        self.norms = nnx.List([nnx.BatchNorm(features, **options) for _ in range(3)])

    def __call__(self, x):
        return sum(norm(y) for norm, y in zip(self.norms, (self.large(x), self.small(x), x), strict=True))

    def fused(self):
        small = self.small.kernel[...]
        kernels = self.large.kernel[...], small, jnp.eye(small.shape[-1], dtype=small.dtype)[None, None]
        return with_kernel(self.large, *algebra.merge_convolutions(list(zip(kernels, self.norms, strict=True))))


class Net(nnx.Module):
    """A user's net, with blocks of both kinds deep inside and one block in two places."""

    def __init__(self, num_classes=3, *, param_dtype=jnp.float32, rngs):
        self.arguments = arguments_text(self, locals())
        self.input_shape = (6, 6, 4)
        options = dict(param_dtype=param_dtype, rngs=rngs)
        shared = RepVGG(4, **options)
        self.stages = nnx.List(
            [
                nnx.Dict(near=RepVGG(4, groups=2, **options), far=RepMLP(**CASES["plain"], **options)),
                nnx.Dict(near=shared, far=RepMLP(**CASES["plain"], **options)),
            ]
        )
        self.last = nnx.data({"blocks": (RepVGG(4, groups=4, **options), shared)})
        self.own_norm = BatchNorm(4, param_dtype=param_dtype)
        self.head = nnx.Linear(4, num_classes, **options)

    def __call__(self, x):
        for stage in self.stages:
            x = x + nnx.relu(stage.far(nnx.relu(stage.near(x))))
        for block in self.last["blocks"]:
            x = nnx.relu(block(x))
        return self.head(self.own_norm(x).mean((1, 2)))


@functools.cache
def net():
    return build(Net)


@functools.cache
def fused_net():
    return fuse_params(net())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_three_branches_become_one_convolution(groups):
    block = build(RepVGG, features=4, groups=groups)
    fused = fuse_params(block)
    assert type(fused) is nnx.Conv
    assert fused.kernel.shape == (3, 3, 4 // groups, 4)
    assert_close(apply(fused, IMAGES), evaluate(block, IMAGES), ROUNDING_F64)


def test_layers_of_flax_do_as_well():
    # In float32: Flax's norms have statistics in float32 whatever the dtype of their parameters.
    block = build(RepVGGOfFlax, features=4, param_dtype=jnp.float32)
    fused = fuse_params(block)
    assert type(fused) is nnx.Conv
    images = IMAGES.astype(jnp.float32)
    assert_close(apply(fused, images), evaluate(block, images), ROUNDING_F32)


@pytest.mark.parametrize("branch", ["large", "small", "identity"])
def test_every_branch_counts(branch):
    block = build(RepVGG, features=4)
    before = block.fused()
    norm = block.identity if branch == "identity" else getattr(block, branch).norm
    norm.scale[...] = 2 * norm.scale[...]
    difference = np.abs(np.asarray(block.fused().kernel[...] - before.kernel[...])).sum((2, 3)) > 0.1
    assert difference.sum() == (9 if branch == "large" else 1)
    assert difference[1, 1]


def test_blocks_of_both_kinds_deep_inside_a_net_are_fused():
    fused = fused_net()
    assert type(fused) is Net
    assert [type(stage[name]) for stage in fused.stages for name in ("near", "far")] == [nnx.Conv, FusedRepMLP] * 2
    assert [type(block) for block in fused.last["blocks"]] == [nnx.Conv] * 2
    assert fused.last["blocks"][1] is fused.stages[1].near
    assert type(net().stages[0].near) is RepVGG
    x = random_input(net())
    assert_close(apply(fused, x), evaluate(net(), x), ROUNDING_F64)
    assert_identical(fuse_params_again(fused), fused)


def fuse_params_again(fused):
    with pytest.warns(UserWarning, match="nothing to fuse: Net holds no module with a fused"):
        return fuse_params(fused)


def test_it_is_as_pure_as_for_other_blocks():
    fused, x = fused_net(), random_input(net())
    compiled = quick_jit(fuse_params)(net())
    assert_close(apply(compiled, x), apply(fused, x), ROUNDING_F64)
    chex.assert_trees_all_equal_shapes_and_dtypes(nnx.eval_shape(fuse_params, net()), fused)


def test_statistics_that_are_not_finite_are_found_in_any_block():
    block = build(RepVGGOfFlax, features=4)
    block.norms[1].var[...] = block.norms[1].var[...].at[2].set(jnp.nan)
    with pytest.raises(
        ValueError, match=r"cannot fuse: List holds values that are NaN or infinite: 0.norms.1.var \(1 of 4\)"
    ):
        fuse_params(nnx.List([block]))


def test_the_report_lists_them():
    report = fuse_report(abstract(Net))
    blocks = {block.path: block for block in report.blocks}
    near = blocks["stages.0.near"]
    assert (near.kind, near.parameters) == ("RepVGG", (72 + 8 + 3 * 8, 72 + 4))
    assert near.macs == (36 * (72 + 8), 36 * 72)
    assert near.folded == {"small": "conv and norm added to large", "identity": "added to large as a convolution"}
    assert blocks["own_norm"].kept == {"norm": "no block with fused() holds it"}
    shared = blocks["last.blocks.1"]
    assert "stages.1.near" not in blocks
    of_all_calls = [sum(block.macs[when] for block in report.blocks) + shared.macs[when] + 4 * 3 for when in (0, 1)]
    assert report.macs == tuple(of_all_calls)


def test_a_block_that_says_nothing_of_itself_is_reported_all_the_same():
    report = fuse_report(abstract(RepVGGOfFlax, 4))
    [block] = report.blocks
    assert (block.folded, block.kept, block.parameters, block.macs) == ({}, {}, (160 + 24, 148), None)
    with_size = fuse_report(abstract(RepVGGOfFlax, 4), (6, 6, 4))
    assert with_size.macs == (36 * 160, 36 * 144)


def test_a_net_of_ones_own_is_saved_once_its_class_is_registered(monkeypatch, tmp_path):
    with pytest.raises(TypeError, match="takes models of registered classes, and Net of test_protocol is not one"):
        save_model(tmp_path / "net", net())
    monkeypatch.setitem(MODELS, "mine", (Net, {}))
    for name, model in (("net", net()), ("fused", fused_net())):
        save_model(tmp_path / name, model)
        evaluated = nnx.clone(model)
        evaluated.eval()
        assert_identical(load_model(tmp_path / name), evaluated)


SEQUENCE = dict(in_features=4, out_features=6, image_size=(24, 1), partition_size=(8, 1), groups=2)


@functools.cache
def on_sequences():
    return build(RepMLP, **SEQUENCE, conv_kernels=(1, 3, 5))


def test_a_block_on_sequences_fuses():
    block = on_sequences()
    fused = fuse_params(block)
    assert fused.kernel_by_pixel().shape == (2, 8, 1, 2, 8, 1, 3)
    x = random_input(block)
    assert_close(apply(fused, x), evaluate(block, x), ROUNDING_F64)


def test_only_the_middle_column_of_a_square_kernel_meets_the_sequence():
    x = random_input(on_sequences())

    @quick_jit
    def gradient(block):
        graphdef, kernels, rest = nnx.split(block, nnx.Param, ...)
        return jax.grad(lambda kernels: jnp.square(nnx.merge(graphdef, kernels, rest)(x)).sum())(kernels)

    block = nnx.clone(on_sequences())
    block.eval()
    local = gradient(block)["local_perceptron"]
    for size in (1, 3, 5):
        columns = np.abs(np.asarray(local[f"{size}x{size}"]["conv"]["kernel"][...])).sum((0, 2, 3))
        assert (columns > 0).tolist() == [column == size // 2 for column in range(size)]


def test_what_square_kernels_on_sequences_cost():
    before, after = fuse_report(abstract(RepMLP, **SEQUENCE, conv_kernels=(5,))).macs
    square, column = (24 * 6 * 2 * size for size in (5 * 5, 5))
    assert before - after == square == 5 * column
