import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, PLAIN, build_block, evaluate, quick_jit, random_input, train
from flax import nnx
from tolerance import ROUNDING_BF16, ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax import RepMLP
from repmlp_jax.blocks.repmlp import PartitionPerceptron


def make(**options):
    return RepMLP(**options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", CASES)
def test_shapes_and_parts(name):
    case = CASES[name]
    block = nnx.eval_shape(lambda: make(**case))
    x = jax.ShapeDtypeStruct((3, *block.input_shape), jnp.float32)
    assert block.input_shape == (*case["image_size"], case["in_features"])
    assert jax.eval_shape(lambda block, x: block(x), block, x).shape == (
        3,
        *case["image_size"],
        case["out_features"],
    )
    pairs = zip(case["image_size"], case["partition_size"], strict=True)
    assert (block.global_perceptron is None) == (math.prod(-(-whole // part) for whole, part in pairs) == 1)
    assert list(block.local_perceptron) == [f"{k}x{k}" for k in case["conv_kernels"]]


def test_fc1_and_fc2_have_the_papers_sizes():
    block = nnx.eval_shape(lambda: make(**CASES["reduction"]))
    assert block.global_perceptron.fc1.kernel.shape == (16, 16 // 3)
    assert block.global_perceptron.fc2.kernel.shape == (16 // 3, 16)


def test_fc3s_kernel_lies_flat():
    block = nnx.eval_shape(lambda: make(**CASES["more outputs"]))
    assert block.partition_perceptron.kernel.shape == (2, 9, 27)
    assert block.partition_perceptron.norm.scale.shape == (2, 1, 27)


@pytest.mark.parametrize(("in_features", "out_features"), [(2, 6), (6, 2)])
def test_fc3_starts_orthogonal(in_features, out_features):
    make = functools.partial(PartitionPerceptron, in_features, out_features, (2, 3), groups=2)
    kernel = np.asarray(make(param_dtype=jnp.float64, rngs=nnx.Rngs(0)).kernel[...])
    # As in the official code: one matrix from a group's inputs to the outputs of all groups.
    inputs = kernel.shape[1]
    matrix = kernel.reshape(2, inputs, -1).transpose(0, 2, 1).reshape(-1, inputs)
    small = matrix.T @ matrix if matrix.shape[0] >= inputs else matrix @ matrix.T
    np.testing.assert_allclose(small, np.eye(len(small)), atol=ROUNDING_F64)


def test_without_a_global_perceptron_a_partition_sees_itself_alone():
    block = build_block()
    block.global_perceptron = None
    x = random_input(block)
    before, after = evaluate(block, x), evaluate(block, x.at[0, :3, 3:].add(1))
    changed = np.asarray(before != after)
    assert changed[0, :3, 3:].all()
    assert changed.sum() == changed[0, :3, 3:].sum()


def test_with_a_global_perceptron_all_partitions_of_an_image_see_each_other():
    block = build_block()
    x = random_input(block)
    changed = np.asarray(evaluate(block, x) != evaluate(block, x.at[0, :3, 3:].add(1)))
    assert changed[0].all()
    assert not changed[1].any()


def test_what_the_global_perceptron_learns_is_added_to_every_pixel_of_its_partition():
    block = build_block()
    alone = nnx.clone(block)
    alone.global_perceptron = None
    perceptron = block.global_perceptron
    scale, bias, mean, var = (
        np.asarray(getattr(perceptron.norm, name)[...]) for name in ("scale", "bias", "mean", "var")
    )
    x = random_input(block)
    averages = np.asarray(x).reshape(2, 2, 3, 2, 3, 4).mean((2, 4))
    normalised = (averages - mean) / np.sqrt(var + 1e-5) * scale + bias
    hidden = normalised.reshape(2, -1) @ np.asarray(perceptron.fc1.kernel[...]) + np.asarray(perceptron.fc1.bias[...])
    added = np.maximum(hidden, 0) @ np.asarray(perceptron.fc2.kernel[...]) + np.asarray(perceptron.fc2.bias[...])
    everywhere = jnp.asarray(added.reshape(averages.shape).repeat(3, axis=1).repeat(3, axis=2))
    assert_close(evaluate(block, x), evaluate(alone, x + everywhere), ROUNDING_F64)


def test_partition_and_local_perceptron_are_summed():
    block = build_block()
    without = {"partition_perceptron": nnx.clone(block), "local_perceptron": nnx.clone(block)}
    without["partition_perceptron"].partition_perceptron = None
    without["local_perceptron"].local_perceptron = nnx.Dict()
    x = random_input(block)
    parts = [evaluate(other, x) for other in without.values()]
    assert_close(evaluate(block, x), sum(parts), ROUNDING_F64)


def test_zeros_around_the_map_are_what_padding_adds():
    padded = build_block("padded")
    x = random_input(padded)
    wide = nnx.clone(padded)
    wide.partitioning = type(padded.partitioning)((9, 6), (3, 3))
    zeros = jnp.pad(x, ((0, 0), (0, 2), (0, 1), (0, 0)))
    np.testing.assert_array_equal(evaluate(padded, x), evaluate(wide, zeros)[:, :7, :5])


DTYPES = [
    pytest.param(None, jnp.float32, jnp.float32, jnp.float32, ROUNDING_F32, id="float32"),
    pytest.param(jnp.bfloat16, jnp.float32, jnp.float32, jnp.bfloat16, ROUNDING_BF16, id="bfloat16 compute"),
    pytest.param(None, jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, ROUNDING_BF16, id="bfloat16 parameters"),
    pytest.param(jnp.float32, jnp.float32, jnp.bfloat16, jnp.float32, ROUNDING_F32, id="bfloat16 input"),
    pytest.param(None, jnp.float64, jnp.float64, jnp.float64, ROUNDING_F64, id="float64"),
]


@pytest.mark.parametrize(("dtype", "param_dtype", "input_dtype", "output_dtype", "tolerance"), DTYPES)
def test_dtypes(dtype, param_dtype, input_dtype, output_dtype, tolerance):
    block = build_block(dtype=dtype, param_dtype=param_dtype)
    x = random_input(block, dtype=input_dtype)
    y = evaluate(block, x)
    assert y.dtype == output_dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(block, nnx.Param))} == {jnp.dtype(param_dtype)}
    statistics = block.partition_perceptron.norm
    assert statistics.mean[...].dtype == (jnp.float64 if param_dtype == jnp.float64 else jnp.float32)
    exact = build_block()
    nnx.update(exact, jax.tree.map(lambda leaf: leaf.astype(jnp.float64) if leaf.ndim else leaf, nnx.state(block)))
    assert_close(y, evaluate(exact, x.astype(jnp.float64)), tolerance)


@pytest.mark.parametrize("name", ["padded", "no convolutions"])
def test_every_parameter_gets_a_finite_gradient(name):
    block = build_block(name)
    x = random_input(block)
    graphdef, parameters, statistics = nnx.split(block, nnx.Param, ...)

    @quick_jit
    def gradients(parameters, x):
        def loss(parameters, x):
            y = nnx.merge(graphdef, parameters, statistics, copy=True)(x)
            return jnp.sum(jnp.sin(3 * y))

        return jax.grad(loss, argnums=(0, 1))(parameters, x)

    found = gradients(parameters, x)
    chex.assert_tree_all_finite(found)
    for path, gradient in jax.tree.leaves_with_path(found):
        assert jnp.abs(gradient).max() > 1e-6, path


def test_training_updates_the_statistics_of_every_norm():
    block = build_block()
    before = nnx.state(nnx.clone(block), nnx.BatchStat)
    train(block, random_input(block))
    changed = jax.tree.map(lambda one, other: bool((one != other).all()), before, nnx.state(block, nnx.BatchStat))
    assert all(jax.tree.leaves(changed))
    assert len(jax.tree.leaves(changed)) == 3 * 4


ERRORS = [
    pytest.param(dict(image_size=(15, 20), partition_size=(7, 7)), ["(15, 20)", "(7, 7)", "[5, 15]"], id="partitions"),
    pytest.param(dict(groups=3), ["groups=3", "(4, 4)", "[1, 2, 4]"], id="groups"),
    pytest.param(dict(groups=0), ["groups=0", "[1, 2, 4]"], id="no groups"),
    pytest.param(dict(conv_kernels=(1, 4)), ["size 4", "3 or 5"], id="even kernel"),
    pytest.param(dict(conv_kernels=(1, 3, 3)), ["(1, 3, 3)", "twice"], id="kernel twice"),
    pytest.param(dict(reduction=0), ["reduction=0", "1 or more"], id="reduction below 1"),
    pytest.param(dict(reduction=0, partition_size=(6, 6)), ["reduction=0"], id="reduction below 1, one partition"),
    pytest.param(dict(reduction=17), ["reduction=17", "0 hidden features of 16", "1 to 16"], id="no hidden feature"),
    pytest.param(dict(partition_size=(0, 3)), ["partition_size", "(0, 3)"], id="size not positive"),
]


@pytest.mark.parametrize(("wrong", "texts"), ERRORS)
def test_wrong_arguments_are_named_with_their_numbers(wrong, texts):
    with pytest.raises(ValueError, match=r".") as error:
        make(**PLAIN | wrong)
    for text in texts:
        assert text in str(error.value)


def test_the_largest_reduction_that_the_message_names_works():
    block = nnx.eval_shape(functools.partial(make, **PLAIN | dict(reduction=16)))
    assert block.global_perceptron.fc1.bias.shape == (1,)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("fused", [False, True])
def test_only_maps_of_the_right_size_are_taken(fused):
    model = build_block().fused() if fused else build_block()
    with pytest.raises(ValueError, match=r"\(6, 6, 4\).*\(2, 6, 5, 4\)"):
        model(jnp.zeros((2, 6, 5, 4)))
    with pytest.raises(TypeError, match="not uint8"):
        model(jnp.zeros((2, 6, 6, 4), jnp.uint8))
