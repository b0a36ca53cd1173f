import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, abstract, apply, build, build_block, evaluate, quick_jit, random_input
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import (
    ROUNDING_BF16,
    ROUNDING_F32,
    ROUNDING_F64,
    assert_close,
    assert_identical,
    assert_trees_close,
)

from repmlp_jax import PureMLP, RepMLP, RepMLPNet, fuse_params, save_model, to_torch
from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import FusedGlobalPerceptron, FusedRepMLP
from repmlp_jax.fusing.algebra import add_kernels, fold_norm, scale_and_shift
from repmlp_jax.fusing.modules import dotted


def trained_and_fused(model, x):
    """The outputs of the model in evaluation mode and of its fused twin, and that, compiled as one."""

    def both(model, x):
        fused = fuse_params(model)
        return nnx.view(model, use_running_average=True)(x), fused(x), fused

    return (quick_jit if x.dtype == jnp.float64 else jax.jit)(both)(model, x)


def assert_nothing_left(fused):
    """A fused block holds FCs and nothing else."""
    for path, node in nnx.iter_graph(fused):
        if isinstance(node, nnx.Module):
            assert type(node) in (FusedRepMLP, FusedGlobalPerceptron, nnx.Linear), path
            assert not hasattr(node, "use_running_average"), path


@pytest.mark.parametrize("name", CASES)
def test_fusing_is_exact(name):
    block = build_block(name)
    expected, actual, _ = trained_and_fused(block, random_input(block))
    assert_close(actual, expected, ROUNDING_F64)


def test_fusing_is_exact_to_rounding_in_float32():
    block = build_block("height is not width", param_dtype=jnp.float32)
    expected, actual, _ = trained_and_fused(block, random_input(block, dtype=jnp.float32))
    assert actual.dtype == jnp.float32
    assert_close(actual, expected, ROUNDING_F32)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_fusing_a_bfloat16_block(param_dtype):
    block = build_block(dtype=jnp.bfloat16, param_dtype=param_dtype)
    expected, actual, fused = trained_and_fused(block, random_input(block, dtype=jnp.bfloat16))
    assert actual.dtype == jnp.bfloat16
    assert_close(actual, expected, ROUNDING_BF16)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(fused))} == {jnp.dtype(param_dtype)}


def test_a_fused_block_is_three_fcs():
    assert_nothing_left(nnx.eval_shape(fuse_params, build_block()))


SIZE = st.integers(1, 4)
BLOCKS = st.fixed_dictionaries(
    dict(
        channels=st.tuples(SIZE, SIZE),
        groups=st.integers(1, 3),
        counts=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        partition_size=st.tuples(SIZE, SIZE),
        conv_kernels=st.sets(st.sampled_from([1, 3, 5, 7])),
        padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
        reduction=st.integers(1, 2),
        seed=st.integers(0, 99),
    )
)


def check_any_block(channels, groups, counts, partition_size, conv_kernels, padding, reduction, seed):
    sizes = zip(counts, partition_size, padding, strict=True)
    image_size = tuple(max(1, count * side - missing) for count, side, missing in sizes)
    several = any(whole > part for whole, part in zip(image_size, partition_size, strict=True))
    block = build(
        RepMLP,
        seed,
        in_features=groups * channels[0],
        out_features=groups * channels[1],
        image_size=image_size,
        partition_size=partition_size,
        conv_kernels=tuple(sorted(conv_kernels)),
        groups=groups,
        reduction=reduction if several else 1,
        pad=True,
    )
    expected, actual, fused = trained_and_fused(block, random_input(block, seed=seed))
    assert expected.shape == (2, *image_size, groups * channels[1])
    assert_close(actual, expected, ROUNDING_F64)
    assert_nothing_left(fused)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(BLOCKS)
def test_any_block_fuses_exactly(options):
    check_any_block(**options)


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(BLOCKS)
def test_any_block_fuses_exactly_at_length(options):
    check_any_block(**options)


def test_the_given_model_stays_as_it_is():
    block = build_block()
    before = nnx.clone(block)
    fuse_params(block)
    assert_identical(block, before)


def test_fusing_twice_changes_nothing_and_says_so():
    fused = fuse_params(build_block())
    with pytest.warns(UserWarning, match="nothing to fuse: FusedRepMLP holds no module with a fused"):
        again = fuse_params(fused)
    assert again is not fused
    assert_identical(again, fused)


def test_a_model_with_nothing_to_fuse_warns():
    with pytest.warns(UserWarning, match="nothing to fuse: Linear"):
        fuse_params(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("thing", [None, {"kernel": 1}, jnp.zeros(3), [1]])
def test_only_modules_can_be_fused(thing):
    with pytest.raises(TypeError, match=rf"model must be an nnx.Module, such as .*, not {type(thing).__name__}"):
        fuse_params(thing)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", ["0.kernel", "1.local_perceptron.3x3.norm.mean", "1.global_perceptron.fc2.bias"])
def test_weights_and_statistics_that_are_not_finite_are_named(name, value):
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), build_block())
    variable = {dotted(path): node for path, node in nnx.iter_graph(model)}[f"layers.{name}"]
    variable[...] = variable[...].at[(1,) * variable.ndim].set(value)
    message = f"cannot fuse: Sequential holds values that are NaN or infinite: layers.{name} (1 of {variable.size})"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fuse_params(model)


def test_negative_variances_are_named():
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), build_block())
    variance = model.layers[1].local_perceptron["3x3"].norm.var
    variance[...] = variance[...].at[1].set(-0.5)
    message = (
        "cannot fuse layers.1.local_perceptron.3x3.norm: 1 of its 4 running variances are negative, the lowest -0.5"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fuse_params(model)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_fusing_gives_the_same(self):
        block = build_block()
        fused = self.variant(fuse_params)(block)
        assert nnx.graphdef(fused) == nnx.graphdef(fuse_params(block))
        assert_trees_close(fused, fuse_params(block), ROUNDING_F64)


def test_under_eval_shape():
    block = build_block()
    fused, abstract = fuse_params(block), nnx.eval_shape(fuse_params, block)
    assert nnx.graphdef(abstract) == nnx.graphdef(fused)
    chex.assert_trees_all_equal_shapes_and_dtypes(fused, abstract)


def test_the_gradient_through_fusing_is_that_of_the_trained_model():
    block = build_block()
    block.eval()
    x = random_input(block)
    graphdef, parameters, statistics = nnx.split(block, nnx.Param, ...)

    def loss(parameters, change):
        return jnp.sum(jnp.sin(change(nnx.merge(graphdef, parameters, statistics, copy=True))(x)))

    gradients = quick_jit(
        lambda parameters: [jax.grad(loss)(parameters, change) for change in (fuse_params, lambda m: m)]
    )
    through_fusing, without = gradients(parameters)
    assert_trees_close(through_fusing, without, ROUNDING_F64)


def test_a_stack_of_models_is_fused_by_vmap():
    blocks = [build_block(seed=seed) for seed in range(3)]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    x = random_input(blocks[0])
    stacked = quick_jit(jax.vmap(lambda model, x: fuse_params(model)(x), in_axes=(0, None)))(stack, x)
    for block, actual in zip(blocks, stacked, strict=True):
        assert_close(actual, evaluate(block, x), ROUNDING_F64)


class RepVGGBlock(nnx.Module):
    """What a user may write: 3×3 and 1×1 convolutions beside an identity, fused to one 3×3 convolution."""

    input_shape = (5, 4, 3)

    def __init__(self, *, rngs, **options):
        self.three = ConvBN(3, 3, 3, rngs=rngs, **options)
        self.one = ConvBN(3, 3, 1, rngs=rngs, **options)
        self.identity = BatchNorm(3, **options)

    def __call__(self, x):
        return self.three(x) + self.one(x) + self.identity(x)

    def fused(self):
        branches = [fold_norm(branch.conv.kernel[...], branch.norm) for branch in (self.three, self.one)]
        scale, shift = scale_and_shift(self.identity)
        kernels, biases = zip(*branches, (jnp.diag(scale).reshape(1, 1, 3, 3), shift), strict=True)
        conv = nnx.clone(self.three.fused())
        conv.kernel[...], conv.bias[...] = add_kernels(kernels), sum(biases)
        return conv


def test_a_module_of_your_own_takes_part():
    model = nnx.Sequential(build(RepVGGBlock), build(RepVGGBlock, seed=1))
    x = random_input(RepVGGBlock)
    fused = fuse_params(model)
    assert [type(layer) for layer in fused.layers] == [nnx.Conv, nnx.Conv]
    assert_close(apply(fused, x), evaluate(model, x), ROUNDING_F64)


@pytest.mark.parametrize("name", ["block", "net"])
def test_a_model_of_numpy_arrays_stays_as_it_is(name):
    def make_net(**options):
        return RepMLPNet((1, 1), (4, 8), 5, partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2), **options)

    model = jax.device_get(build_block() if name == "block" else build(make_net))
    before = jax.tree.map(np.copy, model)
    fuse_params(model)
    assert_identical(model, before)


def test_what_only_looks_like_a_norm_is_not_checked():
    class Scaled(nnx.Module):
        def __init__(self):
            self.scale, self.bias, self.mean, self.var, self.epsilon = 1.0, 0.0, 0.5, -2.0, 1e-5

        def fused(self):
            return self

    class Holder(nnx.Module):
        def __init__(self):
            self.inner = Scaled()

        def fused(self):
            return self

    assert fuse_params(Holder()).inner.var == -2.0


def test_an_abstract_model_is_refused_where_its_values_are_needed(tmp_path):
    block, net = abstract(RepMLP, **CASES["plain"]), abstract(PureMLP)
    with pytest.raises(TypeError, match=r"this RepMLP is abstract: .*; nnx.eval_shape\(fuse_params, model\) takes"):
        fuse_params(block)
    with pytest.raises(TypeError, match="to_torch: this RepMLP is abstract: it has shapes, but no weights"):
        to_torch(block)
    with pytest.raises(TypeError, match="save_model: this PureMLP is abstract: it has shapes, but no weights"):
        save_model(tmp_path / "model", net)
    assert not list(tmp_path.iterdir())
