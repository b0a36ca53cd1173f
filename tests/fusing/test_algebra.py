import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, abstract, build, build_block, quick_jit, random_array
from flax import nnx
from jax import lax
from jax.extend.core import jaxprs_in_params
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax import RepMLP, conv_to_fc, fuse_params
from repmlp_jax.blocks.layers import BatchNorm, by_group, by_pixel, fuse_fc3
from repmlp_jax.blocks.split_maps import multiply_groups
from repmlp_jax.fusing.algebra import add_kernels, fc_bias, fold_norm, scale_and_shift

# Compiled as one: faster here than one operation after another.
convert = quick_jit(conv_to_fc, static_argnums=(1, 2))


def banded_matrix(kernel, partition_size, groups):
    """The convolution as an FC, element by element: which kernel entry joins this input to this output."""
    (kh, kw, c, features), (h, w), o = kernel.shape, partition_size, kernel.shape[-1] // groups
    matrix = np.zeros((groups, h, w, c, h, w, o))
    for g, y_in, x_in, y_out, x_out in np.ndindex(groups, h, w, h, w):
        row, column = y_in - y_out + kh // 2, x_in - x_out + kw // 2
        if 0 <= row < kh and 0 <= column < kw:
            matrix[g, y_in, x_in, :, y_out, x_out] = kernel[row, column, :, g * o : (g + 1) * o]
    assert features == groups * o
    return matrix


@pytest.mark.parametrize("side", [1, 3, 5, 7, 9])
@pytest.mark.parametrize("partition_size", [(4, 4), (5, 3)])
def test_conv_to_fc_is_the_banded_matrix(side, partition_size):
    kernel = random_array(side, side, 2, 3)
    expected = banded_matrix(kernel, partition_size, 1)
    np.testing.assert_array_equal(convert(jnp.asarray(kernel), partition_size), expected)


@pytest.mark.parametrize(
    ("shape", "partition_size", "groups"),
    [
        pytest.param((3, 3, 2, 4), (3, 4), 2, id="groups"),
        pytest.param((3, 3, 1, 4), (2, 3), 4, id="groups are channels"),
        pytest.param((3, 3, 4, 2), (3, 3), 2, id="fewer outputs"),
        pytest.param((1, 5, 2, 6), (4, 3), 3, id="wide kernel"),
        pytest.param((7, 3, 2, 2), (3, 5), 1, id="high kernel"),
        pytest.param((5, 5, 2, 3), (1, 1), 1, id="one pixel"),
    ],
)
def test_conv_to_fc_keeps_channels_groups_and_sides_apart(shape, partition_size, groups):
    kernel = random_array(*shape)
    expected = banded_matrix(kernel, partition_size, groups)
    np.testing.assert_array_equal(convert(jnp.asarray(kernel), partition_size, groups), expected)


def test_the_fc_gives_what_the_convolution_gives():
    kernel, images = jnp.asarray(random_array(3, 5, 2, 6)), jnp.asarray(random_array(2, 4, 5, 4, seed=1))
    convolved = lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=2
    )
    fc = conv_to_fc(kernel, (4, 5), 2).reshape(2, 4 * 5 * 2, 4 * 5 * 3)
    y = multiply_groups(by_group(images.reshape(2, 1, 20, 2, 2)), fc)
    assert_close(by_pixel(y, 20).reshape(convolved.shape), convolved, ROUNDING_F64)


@pytest.mark.parametrize("partition_size", [(4, 4), (3, 5)])
def test_conv_to_fc_is_the_convolution_of_identity_images(partition_size):
    h, w = partition_size
    kernel = jnp.asarray(random_array(3, 5, 2, 6)).at[0, 1, 1, 2].set(jnp.inf)
    one_group = convert(kernel, partition_size)
    for channel in range(2):
        images = jnp.zeros((h * w, h * w, 2)).at[:, :, channel].set(jnp.eye(h * w)).reshape(h * w, h, w, 2)
        convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
        # An inf times the images' zeros is NaN: it is convolved in a kernel of its own, of ones at its place.
        convolved = convolve(images, jnp.where(jnp.isinf(kernel), 0, kernel), (1, 1), "SAME")
        at_inf = convolve(images, jnp.isinf(kernel).astype(kernel.dtype), (1, 1), "SAME")
        expected = jnp.where(at_inf > 0, jnp.inf, convolved).reshape(h, w, h, w, 6)
        np.testing.assert_array_equal(one_group[0, :, :, channel], expected)


def test_a_1x1_identity_kernel_becomes_the_identity():
    fc = conv_to_fc(jnp.eye(3).reshape(1, 1, 3, 3), (2, 4))
    np.testing.assert_array_equal(fc.reshape(24, 24), np.eye(24))


def test_conv_to_fc_is_linear():
    first, second = (jnp.asarray(random_array(3, 3, 2, 4, seed=seed)) for seed in (0, 1))
    to_fc = functools.partial(conv_to_fc, partition_size=(3, 4), groups=2)
    assert_close(to_fc(2 * first + second), 2 * to_fc(first) + to_fc(second), ROUNDING_F64)


class TestVariants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True)
    def test_conv_to_fc_gives_the_same_bits(self):
        kernel = jnp.asarray(random_array(3, 5, 2, 4)).at[0, 1, 1, 2].set(jnp.inf)
        found = self.variant(conv_to_fc, static_argnums=(1, 2))(kernel, (2, 3), 2)
        np.testing.assert_array_equal(found, banded_matrix(kernel, (2, 3), 2))


def test_conv_to_fc_under_vmap_and_grad():
    kernels = jnp.asarray(random_array(2, 3, 3, 2, 4))
    to_fc = functools.partial(conv_to_fc, partition_size=(3, 4), groups=2)
    one_by_one = jnp.stack([to_fc(kernel) for kernel in kernels])
    np.testing.assert_array_equal(jax.vmap(to_fc)(kernels), one_by_one)
    # Every entry's gradient is the number of places at which the kernel overlaps the partition there.
    gradient = jax.grad(lambda kernel: to_fc(kernel).sum())(kernels[0])
    overlaps = np.outer([2, 3, 2], [3, 4, 3])
    np.testing.assert_array_equal(gradient, np.broadcast_to(overlaps[:, :, None, None], gradient.shape))


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (3, 4, 1, 1)])
def test_conv_to_fc_refuses_even_kernels(shape):
    with pytest.raises(ValueError, match=f"odd kernel sides.*not {shape[0]}x{shape[1]}"):
        conv_to_fc(jnp.zeros(shape), (4, 4))


@pytest.mark.parametrize("groups", [0, 3])
def test_conv_to_fc_refuses_groups_that_do_not_divide(groups):
    with pytest.raises(ValueError, match=f"groups={groups} does not divide the 4 output channels"):
        conv_to_fc(jnp.zeros((3, 3, 2, 4)), (4, 4), groups)


def test_add_kernels_centres_the_smaller_ones():
    one, wide, high = (random_array(*sides, 2, 3) for sides in ((1, 1), (1, 5), (3, 1)))
    expected = np.zeros((3, 5, 2, 3))
    expected[1, 2] += one[0, 0]
    expected[1] += wide[0]
    expected[:, 2] += high[:, 0]
    assert_close(add_kernels([jnp.asarray(kernel) for kernel in (one, wide, high)]), expected, ROUNDING_F64)


def test_add_kernels_of_one_kernel_is_itself():
    kernel = jnp.asarray(random_array(3, 3, 2, 2))
    np.testing.assert_array_equal(add_kernels([kernel]), kernel)


def test_fold_norm_by_hand():
    norm = BatchNorm(2, epsilon=0.25, param_dtype=jnp.float64)
    values = dict(scale=[3.0, 4.0], bias=[1.0, -1.0], mean=[2.0, 0.5], var=[3.75, 0.75])
    for name, value in values.items():
        getattr(norm, name)[...] = jnp.asarray(value)
    scale, shift = scale_and_shift(norm)
    assert_close(scale, [1.5, 4.0], ROUNDING_F64)
    assert_close(shift, [-2.0, -3.0], ROUNDING_F64)
    kernel, bias = fold_norm(jnp.asarray([[1.0, 1.0], [2.0, -1.0]]), norm)
    assert_close(kernel, [[1.5, 4.0], [3.0, -4.0]], ROUNDING_F64)
    assert_close(bias, [-2.0, -3.0], ROUNDING_F64)


def test_fc_bias_is_the_channels_bias_at_every_pixel():
    bias = fc_bias(jnp.arange(4.0), (2, 3), 2)
    assert bias.shape == (2, 2, 3, 2)
    for y, x in np.ndindex(2, 3):
        np.testing.assert_array_equal(bias[:, y, x], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("in_features", "out_features", "groups"),
    [
        pytest.param(16, 16, 1, id="dense"),
        pytest.param(32, 8, 1, id="C=4·O"),
        pytest.param(32, 32, 4, id="grouped"),
    ],
)
def test_fusing_fc3_needs_little_more_memory_than_its_kernel(in_features, out_features, groups):
    make = functools.partial(RepMLP, in_features, out_features, image_size=(8, 8), partition_size=(8, 8))
    block = abstract(make, conv_kernels=(1, 3, 5, 7), groups=groups)
    branches = list(block.local_perceptron.values())
    fc3 = block.partition_perceptron.kernel.get_value(), block.partition_perceptron.norm
    program = jax.jit(fuse_fc3, static_argnums=(2, 3)).lower(fc3, branches, (8, 8), groups)
    memory = program.compile().memory_analysis()
    kernel_bytes = 4 * 64 * 64 * in_features * out_features // groups
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes <= 3 * kernel_bytes


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_fusing_computes_in_float32_at_the_highest_precision(param_dtype):
    options = CASES["plain"] | dict(dtype=jnp.bfloat16, param_dtype=param_dtype)
    block = abstract(RepMLP, **options)
    found = list(equations(jax.make_jaxpr(fuse_params)(block).jaxpr))
    products = [eqn for eqn in found if eqn.primitive.name in ("conv_general_dilated", "dot_general")]
    (shift_through_fc1,) = products
    assert shift_through_fc1.params["precision"] == (lax.Precision.HIGHEST,) * 2
    moves = (
        "convert_element_type",
        "reshape",
        "transpose",
        "broadcast_in_dim",
        "copy",
        "squeeze",
        "slice",
        "jit",
    )
    for equation in found:
        if equation.primitive.name not in moves:
            assert all(variable.aval.dtype != jnp.bfloat16 for variable in equation.invars), equation


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_fused_weights_are_rounded_once(param_dtype):
    block = build_block(dtype=jnp.bfloat16, param_dtype=param_dtype)
    wide = build(RepMLP, **CASES["plain"])
    for (_, variable), (_, other) in zip(
        nnx.to_flat_state(nnx.state(wide)), nnx.to_flat_state(nnx.state(block)), strict=True
    ):
        variable[...] = other[...].astype(variable[...].dtype)
    fused, expected = fuse_params(block), fuse_params(wide)
    assert fused.kernel[...].dtype == param_dtype
    # One rounding to the dtype of the parameters is half a unit in its last place.
    tolerance = ROUNDING_F32 if param_dtype == jnp.float32 else 2.0**-8
    assert_close(fused.kernel[...], expected.kernel[...], tolerance)
    assert_close(fused.bias[...], expected.bias[...], tolerance)
