import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import build, quick_jit, random_array, train
from flax import nnx
from jax import lax
from tolerance import ROUNDING_F32, ROUNDING_F64, assert_close

from repmlp_jax.blocks.layers import BatchNorm, ConvBN, check_groups

# The shape of the norm, that of its input, and the axes that statistics are taken over.
NORMS = [
    pytest.param((3,), (4, 2, 5, 3), (0, 1, 2), id="over N, H, W"),
    pytest.param((3,), (4, 3), (0,), id="over N"),
    pytest.param((2, 1, 3, 4, 5), (2, 6, 3, 4, 5), (1,), id="over partitions, as FC3's"),
    pytest.param((2, 1, 3), (5, 2, 4, 3), (0, 2), id="inner axis"),
]


@pytest.mark.parametrize(("shape", "input_shape", "axes"), NORMS)
def test_batch_norm_in_training(shape, input_shape, axes):
    norm = build(functools.partial(norm_without_rngs, shape))
    before = {name: np.asarray(getattr(norm, name)[...]) for name in ("scale", "bias", "mean", "var", "batches")}
    x = random_array(*input_shape)
    y = train(norm, jnp.asarray(x))
    count = np.prod([input_shape[axis] for axis in axes])
    mean, biased, unbiased = x.mean(axes), x.var(axes), x.var(axes, ddof=1)
    keep = functools.partial(np.expand_dims, axis=axes)
    aligned = {name: value.reshape((1,) * (x.ndim - value.ndim) + value.shape) for name, value in before.items()}
    expected = (x - keep(mean)) / np.sqrt(keep(biased) + 1e-5) * aligned["scale"] + aligned["bias"]
    assert_close(y, expected, ROUNDING_F64)
    assert_close(norm.mean[...], 0.9 * before["mean"] + 0.1 * mean.reshape(shape), ROUNDING_F64)
    assert_close(norm.var[...], 0.9 * before["var"] + 0.1 * unbiased.reshape(shape), ROUNDING_F64)
    assert_close(unbiased, biased * count / (count - 1), ROUNDING_F64)
    assert norm.batches[...] == before["batches"] + 1


@pytest.mark.parametrize(("shape", "input_shape", "axes"), NORMS)
def test_batch_norm_in_evaluation_uses_the_running_statistics(shape, input_shape, axes):
    norm = build(functools.partial(norm_without_rngs, shape))
    norm.eval()
    x = random_array(*input_shape)
    scale, bias, mean, var = (np.asarray(getattr(norm, name)[...]) for name in ("scale", "bias", "mean", "var"))
    y = norm(jnp.asarray(x))
    full = [value.reshape((1,) * (x.ndim - value.ndim) + value.shape) for value in (scale, bias, mean, var)]
    assert_close(y, (x - full[2]) / np.sqrt(full[3] + 1e-5) * full[0] + full[1], ROUNDING_F64)
    np.testing.assert_array_equal(norm.mean[...], mean)
    np.testing.assert_array_equal(norm.var[...], var)


def norm_without_rngs(shape, *, rngs, **options):
    del rngs
    return BatchNorm(shape, **options)


def test_batch_norm_differs_from_flax_in_the_running_variance_alone():
    x = jnp.asarray(random_array(3, 2, 2, 5), jnp.float32)
    ours, theirs = BatchNorm(5), nnx.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0))
    assert_close(ours(x), theirs(x), ROUNDING_F32)
    assert_close(ours.mean[...], theirs.mean[...], ROUNDING_F32)
    assert_close(ours.var[...] - 0.9, (theirs.var[...] - 0.9) * (12 / 11), 10 * ROUNDING_F32)  # 0.9 cancels a digit


def test_running_statistics_carry_no_gradient():
    def running_mean(x):
        norm = BatchNorm(2, param_dtype=jnp.float64)
        norm(x)
        return norm.mean[...].sum() + norm.var[...].sum()

    np.testing.assert_array_equal(jax.grad(running_mean)(jnp.asarray(random_array(4, 2))), 0)


def test_momentum_is_the_share_that_stays():
    norm = BatchNorm(2, momentum=0.75, param_dtype=jnp.float64)
    norm(jnp.asarray([[4.0, 0.0], [8.0, 0.0]]))
    assert_close(norm.mean[...], [0.25 * 6, 0], ROUNDING_F64)
    assert_close(norm.var[...], [0.75 + 0.25 * 8, 0.75], ROUNDING_F64)


@pytest.mark.parametrize(("shape", "input_shape"), [((3,), (1, 3)), ((3,), (1, 1, 1, 3)), ((2, 1, 2), (2, 1, 2))])
def test_one_value_a_feature_has_no_variance(shape, input_shape):
    norm, x = BatchNorm(shape), jnp.ones(input_shape, jnp.float32)
    with pytest.raises(ValueError, match="at least 2 values a feature") as error:
        norm(x)
    assert f"{input_shape} has 1" in str(error.value)
    norm.eval()
    assert norm(x).shape == input_shape


@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_statistics_of_bfloat16_inputs_are_taken_in_float32(param_dtype):
    # In bfloat16, 128 + noise would have a variance of garbage and a running mean that never moves.
    x = jnp.asarray(128 + random_array(64, 4), jnp.bfloat16)
    norm = BatchNorm(4, dtype=jnp.bfloat16, param_dtype=param_dtype)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    assert_close(norm.mean[...], 0.1 * exact.mean(0), ROUNDING_F32)
    assert_close(norm.var[...], 0.9 + 0.1 * exact.var(0, ddof=1), ROUNDING_F32)


def test_the_mode_is_that_of_nnx():
    norm = BatchNorm(2)
    assert nnx.view(norm, use_running_average=True).use_running_average
    assert not norm.use_running_average
    norm.eval()
    assert norm.use_running_average
    norm.train()
    assert not norm.use_running_average


CONVOLUTIONS = [
    pytest.param(dict(kernel_size=3), (1, 1), id="plain"),
    pytest.param(dict(kernel_size=1), (0, 0), id="1×1"),
    pytest.param(dict(kernel_size=(1, 5)), (0, 2), id="not square"),
    pytest.param(dict(kernel_size=3, strides=2), (1, 1), id="strides"),
    pytest.param(dict(kernel_size=3, groups=2), (1, 1), id="groups"),
    pytest.param(dict(kernel_size=3, groups=4), (1, 1), id="groups are channels"),
    pytest.param(dict(kernel_size=3, kernel_dilation=2), (2, 2), id="dilation"),
    pytest.param(dict(kernel_size=(3, 7), groups=2, strides=2, kernel_dilation=2), (2, 6), id="all"),
]


@pytest.mark.parametrize(("options", "padding"), CONVOLUTIONS)
def test_conv_bn_is_convolution_then_norm_and_fuses_to_one_convolution(options, padding):
    layer = build(functools.partial(ConvBN, 4, 8, **options))
    layer.eval()
    x = jnp.asarray(random_array(2, 7, 6, 4))
    convolved = lax.conv_general_dilated(
        x,
        layer.conv.kernel[...],
        (options.get("strides", 1),) * 2,
        [(side, side) for side in padding],
        rhs_dilation=(options.get("kernel_dilation", 1),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=options.get("groups", 1),
    )
    norm = {name: np.asarray(getattr(layer.norm, name)[...]) for name in ("scale", "bias", "mean", "var")}
    expected = (np.asarray(convolved) - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * norm["scale"] + norm["bias"]
    trained, fused = quick_jit(lambda layer, x: (layer(x), layer.fused()(x)))(layer, x)
    assert_close(trained, expected, ROUNDING_F64)
    assert_close(fused, expected, ROUNDING_F64)
    assert type(nnx.eval_shape(lambda layer: layer.fused(), layer)) is nnx.Conv


@pytest.mark.parametrize("size", [2, 4, (3, 2)])
def test_even_kernels_are_refused(size):
    with pytest.raises(ValueError, match="has no middle pixel: use an odd size") as error:
        ConvBN(4, 4, size, rngs=nnx.Rngs(0))
    assert f"a kernel of size {size if isinstance(size, tuple) else (size, size)}" in str(error.value)
    works = [int(side) for side in re.findall(r"like (\d+) or (\d+)$", str(error.value))[0]]
    assert all(side > 0 and side % 2 for side in works)
    assert len(set(works)) == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 4, 3), r"the channels \(0, 4\) must be at least 1"),
        ((4, -8, 3), "out_features must be a positive integer, not -8"),
        ((4, 4, -3), "kernel_size must be two positive integers, or one for both, not -3"),
    ],
)
def test_what_is_not_positive_is_refused_without_a_suggestion(sizes, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ConvBN(*sizes, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("groups", [0, 3, 8])
def test_groups_that_do_not_divide_are_refused_with_those_that_do(groups):
    with pytest.raises(ValueError, match=f"groups={groups} does not divide") as error:
        ConvBN(4, 8, 3, groups=groups, rngs=nnx.Rngs(0))
    assert "(4, 8)" in str(error.value)
    assert "[1, 2, 4]" in str(error.value)
    for works in (1, 2, 4):
        check_groups(works, 4, 8)
