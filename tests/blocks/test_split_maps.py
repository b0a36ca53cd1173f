import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_array, randomised
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_trees_close

from repmlp_jax import RepMLP, RepMLPNetBlock, fuse_params
from repmlp_jax.blocks.layers import BatchNorm, ConvBN, by_group, by_pixel, conv, on_partitions
from repmlp_jax.blocks.partition import Partitioning
from repmlp_jax.blocks.run import OnPartitions, run
from repmlp_jax.blocks.sharesets import convolve_sharesets, multiply_sharesets
from repmlp_jax.blocks.split_maps import FEWEST_LAST, convolve_partitions, multiply_groups, multiply_pixels
from repmlp_jax.fusing.one_platform import as_compiled_for


def random(seed, *shape):
    return jnp.asarray(random_array(*shape, seed=seed))


@pytest.mark.parametrize(("groups", "in_features", "out_features"), [(1, 3, 2), (2, 4, 6), (4, 4, 4)])
def test_fc3_is_the_loop(groups, in_features, out_features):
    (h, w), (c, o) = (2, 3), (in_features // groups, out_features // groups)
    x = np.asarray(random(0, 2, 2, h * w, groups, c))
    kernel = np.asarray(random(1, groups, h * w * c, h * w * o))
    expected = np.zeros((2, 2, h * w, groups, o))
    for image, part, pixel, g, feature in np.ndindex(expected.shape):
        seen = x[image, part, :, g].ravel()
        expected[image, part, pixel, g, feature] = np.sum(seen * kernel[g, :, pixel * o + feature])
    y = multiply_groups(by_group(jnp.asarray(x)), jnp.asarray(kernel))
    assert_close(by_pixel(y, h * w), expected, ROUNDING_F64)


def test_a_split_map_has_its_groups_contiguous_and_its_partitions_row_by_row():
    x = random(0, 2, 4, 6, 6)
    split = Partitioning((4, 6), (2, 3)).split(x, 2)
    assert split.shape == (2, 4, 6, 2, 3)
    for down, across, row, column, group in np.ndindex(2, 2, 2, 3, 2):
        found = split[:, 2 * down + across, 3 * row + column, group]
        np.testing.assert_array_equal(found, x[:, 2 * down + row, 3 * across + column, 3 * group : 3 * group + 3])


def test_pixels_are_multiplied_as_by_a_dense_1x1_convolution():
    x, kernel = random(0, 2, 3, 4, 2, 3), random(1, 6, 8)
    expected = np.asarray(x).reshape(2, 3, 4, 6) @ np.asarray(kernel)
    assert_close(multiply_pixels(x, kernel), expected.reshape(2, 3, 4, 2, 4), ROUNDING_F64)


@pytest.mark.parametrize("side", [1, 3, 5, (1, 3), (5, 1)])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_partitions_are_convolved_by_themselves(side, platform):
    layer = conv(4, 6, side, feature_group_count=2, use_bias=False, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = random(0, FEWEST_LAST, 2, 12, 2, 2)
    expected = layer(x.reshape(-1, 3, 4, 4)).reshape(FEWEST_LAST, 2, 12, 2, 3)
    convolve = as_compiled_for(platform, lambda x, kernel: convolve_partitions(x, kernel, (3, 4)))
    assert_close(convolve(x, layer.kernel[...]), expected, ROUNDING_F64)


@pytest.mark.parametrize(("channels", "sharesets"), [(6, 1), (6, 2), (6, 6)])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_channel_has_the_kernels_of_its_shareset(channels, sharesets, platform):
    x, matrices, kernel = random(0, 2, 3, 20, channels), random(1, sharesets, 20, 20), random(2, 3, 5, 1, sharesets)
    found = as_compiled_for(platform, multiply_sharesets)(x, matrices)
    images = x.reshape(6, 4, 5, channels)
    convolved = as_compiled_for(platform, convolve_sharesets)(images, kernel)
    for channel in range(channels):
        number = channel % sharesets
        assert_close(found[..., channel], np.asarray(x[..., channel]) @ np.asarray(matrices[number]), ROUNDING_F64)
        one = jax.lax.conv(images[:, None, :, :, channel], kernel[None, None, :, :, 0, number], (1, 1), "SAME")
        assert_close(convolved[..., channel], one[:, 0], ROUNDING_F64)


BLOCK = dict(image_size=(4, 6), partition_size=(2, 3), conv_kernels=(1, 3), groups=2, param_dtype=jnp.float64)


def block(**changed):
    return RepMLP(4, 4, **BLOCK | changed, rngs=nnx.Rngs(0))


def pointwise(in_features=4, out_features=4, kernel_size=1, **changed):
    return ConvBN(in_features, out_features, kernel_size, **changed, param_dtype=jnp.float64, rngs=nnx.Rngs(1))


class Doubled(RepMLP):
    def __call__(self, x):
        return 2 * super().__call__(x)


RUNS = {
    "a stage": (lambda: [block(), pointwise(4, 8), pointwise(8, 4), block()], 4),
    "a layer that sees neighbours": (lambda: [block(), pointwise(kernel_size=3), block()], 2),
    "pointwise in groups": (lambda: [block(), pointwise(groups=2), block()], 2),
    "channels that the groups do not divide": (lambda: [block(), pointwise(4, 3), pointwise(3, 4), block()], 2),
    "strides": (lambda: [block(), pointwise(strides=2), pointwise()], 1),
    "other partitions": (lambda: [block(), block(partition_size=(4, 6)), pointwise()], 3),
    "other groups": (lambda: [block(), block(groups=1)], 2),
    "padding": (lambda: [block(image_size=(3, 5), pad=True), pointwise(), block(image_size=(3, 5), pad=True)], 0),
    "a subclass": (lambda: [block(), Doubled(4, 4, **BLOCK, rngs=nnx.Rngs(0)), block()], 2),
    "a function": (lambda: [block(), nnx.relu, pointwise()], 1),
}


@pytest.mark.parametrize(("make", "stays_split"), RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("mode", ["trained", "in training", "fused"])
def test_a_run_is_its_layers_one_after_another(make, stays_split, mode):
    layers = nnx.List(make())
    x = random(0, 3, *getattr(layers[0], "input_shape", (4, 6, 4)))
    layers = randomised(layers)
    others = nnx.clone(layers)
    if mode == "fused":
        if any(type(layer) is Doubled for layer in layers):
            pytest.skip("a subclass with its own __call__ is not fused")
        layers = fuse_params(layers)
    elif mode == "trained":
        layers.eval(), others.eval()
    expected = x
    for layer in others if mode != "fused" else layers:
        expected = layer(expected)
    applied = []

    def apply(layer, x):
        applied.append(isinstance(layer, OnPartitions))
        return layer(x)

    assert_close(run(layers, x, apply), expected, ROUNDING_F64)
    assert sum(applied) == stays_split
    if mode == "in training":
        statistics = [nnx.state(list(some), nnx.BatchStat) for some in (layers, others)]
        assert_trees_close(*statistics, ROUNDING_F64)


def test_a_replaced_convolution_of_the_local_perceptron_sees_each_partition():
    class Plain(nnx.Module):
        def __call__(self, x):
            assert x.shape[1:] == (2, 3, 4)
            return x

    x = random(0, 2, 4, 6, 2, 2)
    np.testing.assert_array_equal(on_partitions(Plain(), x, (2, 3)), x)


class DoubledConvBN(ConvBN):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Shifted(BatchNorm):
    def __call__(self, x):
        return 1 + super().__call__(x)


def with_shifted_norm(layer):
    layer.norm = Shifted(layer.norm.scale.shape, param_dtype=jnp.float64)
    return layer


def test_a_subclass_in_the_local_perceptron_keeps_its_call():
    model, x = block(partition_size=(4, 6)), random(0, 2, 4, 6, 4)
    model.eval()
    expected = model(x) + model.local_perceptron["3x3"](x)
    doubled = DoubledConvBN(4, 4, 3, groups=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    doubled.eval()
    nnx.update(doubled, nnx.state(model.local_perceptron["3x3"]))
    model.local_perceptron["3x3"] = doubled
    assert_close(model(x), expected, ROUNDING_F64)


def test_another_norm_in_a_run_normalises_the_whole_map():
    layers = [block(), with_shifted_norm(pointwise()), block()]
    layers[0].local_perceptron["1x1"] = with_shifted_norm(layers[0].local_perceptron["1x1"])
    for layer in layers:
        layer.eval()
    expected = x = random(0, 2, 4, 6, 4)
    for layer in layers:
        expected = layer(expected)
    assert_close(run(layers, x), expected, ROUNDING_F64)


class Identity(nnx.Module):
    def __call__(self, x):
        return x


def test_a_replaced_convolution_of_sharesets_sees_their_images():
    net = RepMLPNetBlock(6, partition_size=(2, 3), sharesets=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    net.eval()
    x = random(0, 2, 4, 6, 6)
    convolution = net.local_perceptron["3x3"]
    doubled = DoubledConvBN(2, 2, 3, groups=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    doubled.eval()
    nnx.update(doubled, nnx.state(convolution))
    results = []
    for layer in (convolution, doubled, Identity()):
        net.local_perceptron["3x3"] = layer
        results.append(net(x))
    del net.local_perceptron["3x3"]
    once, twice, plus_input = (result - net(x) for result in results)
    assert_close(twice, 2 * once, ROUNDING_F64)
    assert_close(plus_input, x * net.gate(x), ROUNDING_F64)


def test_a_run_refuses_maps_of_another_size_or_other_channels():
    shrink = lambda x: x[:, ::2]  # noqa: E731
    with pytest.raises(ValueError, match=r"called with an array of shape \(2, 2, 6, 4\)"):
        run([block(), shrink, block()], random(0, 2, 4, 6, 4))
    with pytest.raises(ValueError, match=r"called with an array of shape \(2, 4, 6, 8\)"):
        run([block(), pointwise(4, 8), block()], random(0, 2, 4, 6, 4))


def test_a_convolution_of_its_own_precision_keeps_it():
    model, layer = block(), pointwise()
    model.eval(), layer.eval()
    layer.conv.precision = "highest"
    program = jax.make_jaxpr(lambda x: run([model, layer], x))(random(0, 2, 4, 6, 4))
    assert "HIGHEST" in str(program)


def test_a_batch_may_be_empty():
    model = block()
    model.eval()
    for one in (model, fuse_params(model)):
        assert one(random(0, 0, 4, 6, 4)).shape == (0, 4, 6, 4)
