"""PSPNet: its resampling is PyTorch's, its maps have the paper's sizes, and fusing changes nothing, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, apply, build, quick_jit, random_array, random_input
from flax import nnx
from tolerance import ROUNDING_BF16, ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import RepMLP, RepMLPResNet, fuse_params, fuse_report
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.blocks.resampling import adaptive_average, enlarge
from repmlp_jax.models.backbone import with_backbone_of
from repmlp_jax.models.pspnet import PSPNet, PyramidPooling
from repmlp_jax.models.residual import BaseBlock

SMALL = dict(
    stage_sizes=(1, 2, 2, 1),
    image_size=(25, 41),
    partition_size=(2, 3),
    conv_kernels=(1, 3),
    groups=(2, 2),
    reduction=(1, 2),
    r=(1, 2),
    widths=(8, 16, 32, 32),
    stem_features=4,
)


def make(**options):
    return PSPNet(5, **(SMALL | options))


@pytest.fixture(scope="module")
def net():
    model = build(make)
    model.eval()
    return model


@pytest.fixture(scope="module")
def images(net):
    return random_input(net)


@quick_jit
def apply_both(model, x):
    return model.with_auxiliary(x)


SIZES = [((7, 5), (3, 2)), ((6, 6), (3, 2)), ((4, 9), (6, 6)), ((1, 3), (1, 1)), ((1, 1), (2, 3))]


@pytest.mark.parametrize(("source", "result"), SIZES)
def test_adaptive_average_is_pytorchs(source, result):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *source, 3))
    expected = torch.nn.AdaptiveAvgPool2d(result)(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    assert_close(quick_jit(adaptive_average, static_argnums=1)(jnp.asarray(x), result), expected, ROUNDING_F64)


@pytest.mark.parametrize(("source", "result"), [*SIZES, ((4, 6), (25, 41)), ((3, 2), (3, 2)), ((5, 4), (3, 1))])
def test_enlarging_is_pytorchs_corner_to_corner(source, result):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, *source, 3))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), result, mode="bilinear", align_corners=True
    ).permute(0, 2, 3, 1)
    assert_close(quick_jit(enlarge, static_argnums=1)(jnp.asarray(x), result), expected, ROUNDING_F64)


def test_windows_overlap_where_bins_do_not_divide_the_map():
    x = jnp.arange(5, dtype=jnp.float64).reshape(1, 5, 1, 1)
    np.testing.assert_allclose(adaptive_average(x, (2, 1)).ravel(), [1, 3])  # rows 0-2 and 2-4
    np.testing.assert_allclose(adaptive_average(x, (3, 1)).ravel(), [0.5, 2, 3.5])


def test_resampling_keeps_the_dtype_and_sums_in_float32():
    x = jnp.full((1, 90, 90, 1), 0.1, jnp.bfloat16)
    for y in (adaptive_average(x, (1, 1)), enlarge(x, (713, 713))):
        assert y.dtype == jnp.bfloat16
        assert_close(y, np.full(y.shape, float(x[0, 0, 0, 0])), ROUNDING_BF16)


def test_the_pyramid_is_the_map_and_its_averages():
    pyramid = build(lambda **options: PyramidPooling(4, (1, 2), **options))
    pyramid.eval()
    x = jnp.asarray(random_array(2, 5, 4, 4))
    y = apply(pyramid, x)
    assert y.shape == (2, 5, 4, 8)
    np.testing.assert_array_equal(y[..., :4], x)
    whole = nnx.relu(pyramid.levels[0](x.mean((1, 2), keepdims=True)))
    assert_close(y[..., 4:6], jnp.broadcast_to(whole, (2, 5, 4, 2)), ROUNDING_F64)
    with pytest.raises(ValueError, match=r"3 bins \(1, 2, 3\) do not divide the map's 4 channels"):
        PyramidPooling(4, (1, 2, 3), rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("output_stride", "maps", "dilations"),
    [(8, [(8, 10), (4, 5)] + [(4, 5)] * 2, [1, 1, 2, 4]), (32, [(8, 10), (4, 5), (2, 3), (1, 2)], [1] * 4)],
)
def test_maps_shrink_to_the_output_stride_and_then_see_as_far(output_stride, maps, dilations):
    size = dict(image_size=(29, 38), partition_size=(2, 2), pad=True)
    model = abstract(make, output_stride=output_stride, **size)
    model.eval()
    x = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    found = jax.eval_shape(lambda model, x: model.maps(x), model, x)
    assert [each.shape[1:3] for each in found] == maps
    assert [stage[0].conv2.conv.kernel_dilation[0] for stage in model.stages] == dilations
    assert [block.conv2.conv.kernel_dilation[1] for block in model.stages[2]] == [dilations[2]] * 2
    # RepMLP sits in c3 and c4 alone, never where the map is halved.
    kinds = [[isinstance(block, BaseBlock) for block in stage] for stage in model.stages]
    assert kinds == [[True], [True, False], [True, False], [True]]


def test_dilated_stages_compute_what_the_halving_ones_do_at_every_other_pixel():
    """With its stride taken away and its convolutions dilated, a stage gives the same at the pixels that it had."""
    halving, dilated = (
        build(
            lambda strides=strides, dilation=dilation, **options: BaseBlock(
                4, 2, 8, strides=strides, dilation=dilation, **options
            )
        )
        for strides, dilation in ((2, 1), (1, 1))
    )
    following, following_dilated = (
        build(lambda dilation=dilation, **options: BaseBlock(8, 2, 8, dilation=dilation, **options))
        for dilation in (1, 2)
    )
    x = jnp.asarray(random_array(2, 9, 7, 4))
    models = (halving, dilated, following, following_dilated)
    for model in models:
        model.eval()
    expected = apply(following, apply(halving, x))
    assert_close(apply(following_dilated, apply(dilated, x))[:, ::2, ::2], expected, ROUNDING_F64)


def test_both_heads_say_something_of_every_pixel(net, images):
    logits, auxiliary = apply_both(net, images)
    assert logits.shape == auxiliary.shape == (2, 25, 41, 5)
    np.testing.assert_array_equal(logits, apply(net, images))
    assert jnp.abs(logits - auxiliary).max() > 0.1


@pytest.mark.slow
def test_fusing_is_exact_and_complete(net, images):
    fused = fuse_params(net)
    assert_close(apply(fused, images), apply(net, images), ROUNDING_F64)
    assert not any(isinstance(node, BatchNorm | nnx.Dropout) for _, node in nnx.iter_graph(fused))
    assert not jax.tree.leaves(nnx.state(fused, nnx.RngState))
    assert not jax.tree.leaves(nnx.state(fused.auxiliary))
    with pytest.raises(ValueError, match="a fused PSPNet has no auxiliary head"):
        fused.with_auxiliary(images)


def test_every_norm_has_a_place_where_it_went(net):
    report = fuse_report(net)
    norms = sum(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(net))
    assert sum(len(block.folded) + len(block.kept) for block in report.blocks) == norms
    assert "conv.norm left out with the head, which only helps to train" in str(report)
    assert report.macs is not None


@pytest.mark.slow
def test_training_reaches_every_parameter(net, images):
    graphdef, parameters, rest = nnx.split(net, nnx.Param, ...)

    @quick_jit
    def gradient(parameters, rest, x):
        def loss(parameters):
            model = nnx.merge(graphdef, parameters, rest, copy=True)
            model.train()
            logits, auxiliary = model.with_auxiliary(x)
            return jnp.square(logits).mean() + 0.4 * jnp.square(auxiliary).mean()

        return jax.grad(loss)(parameters)

    gradients = gradient(parameters, rest, jnp.concatenate([images, images + 1]))
    untouched = ["/".join(map(str, place)) for place, each in nnx.to_flat_state(gradients) if not jnp.any(each[...])]
    assert not untouched


def test_training_drops_whole_channels(net):
    drop = nnx.clone(net).head.drop
    drop.train()
    dropped = drop(jnp.ones((36, 3, 2, 8), jnp.float64)) == 0
    np.testing.assert_array_equal(dropped.all((1, 2)), dropped.any((1, 2)))
    assert 0.02 < dropped.mean() < 0.25


@pytest.mark.slow
def test_rematerialising_changes_nothing(net, images):
    other = build(lambda **options: make(rematerialise=True, **options))
    other.eval()
    assert_close(apply(other, images), apply(net, images), ROUNDING_F64)


def test_a_net_without_repmlp_takes_any_size():
    model = build(lambda **options: make(block="base", image_size=(27, 30), **options))
    model.eval()
    x = random_input(model)
    assert apply(model, x).shape == (2, 27, 30, 5)
    assert not any(isinstance(node, RepMLP) for _, node in nnx.iter_graph(model))


def wide_stem_and_classifier(image_size, image_size_of_classifier):
    options = {name: SMALL[name] for name in SMALL if name not in ("image_size", "stem_features", "reduction")}
    options |= dict(widths=(8, 16, 32, 64))
    classifier = dict(num_classes=7, block="bottleneck", image_size=image_size_of_classifier, pad=True)
    return (
        build(lambda **kwargs: make(image_size=image_size, stem_features=64, reduction=(1, 1), **options, **kwargs)),
        build(lambda **kwargs: RepMLPResNet(**classifier, **options, **kwargs), seed=1),
    )


def test_a_classifiers_stages_are_taken_over_but_for_fcs_of_another_size(net):
    wide_stem, classifier = wide_stem_and_classifier((25, 41), (32, 96))
    started = with_backbone_of(wide_stem, classifier)
    assert_identical(started.stem, classifier.stem)
    np.testing.assert_array_equal(started.head.linear.kernel, wide_stem.head.linear.kernel)
    ours, theirs, before = (model.stages[1][1].repmlp for model in (started, classifier, wide_stem))
    np.testing.assert_array_equal(ours.partition_perceptron.kernel, theirs.partition_perceptron.kernel)
    np.testing.assert_array_equal(ours.global_perceptron.norm.mean, theirs.global_perceptron.norm.mean)
    assert theirs.global_perceptron.fc1.kernel.shape != ours.global_perceptron.fc1.kernel.shape
    np.testing.assert_array_equal(ours.global_perceptron.fc1.kernel, before.global_perceptron.fc1.kernel)
    with pytest.raises(ValueError, match=r"(?s)does not fit PSPNet:.*conv1.conv.kernel has shape \(1, 1, 64, 2\)"):
        with_backbone_of(net, classifier)


def test_fcs_of_as_many_partitions_in_another_order_are_not_taken_over():
    net, classifier = wide_stem_and_classifier((9, 41), (64, 24))
    started = with_backbone_of(net, classifier)
    ours, theirs, before = (model.stages[2][1].repmlp for model in (started, classifier, net))
    assert (ours.partitioning.counts, theirs.partitioning.counts) == ((1, 2), (2, 1))
    assert ours.global_perceptron.fc1.kernel.shape == theirs.global_perceptron.fc1.kernel.shape
    assert_identical(ours.global_perceptron.fc1, before.global_perceptron.fc1)
    assert_identical(ours.global_perceptron.fc2, before.global_perceptron.fc2)
    np.testing.assert_array_equal(ours.partition_perceptron.kernel, theirs.partition_perceptron.kernel)


@pytest.mark.slow
def test_the_papers_net_has_maps_of_90_pixels_and_fewer_operations_than_with_convolutions():
    model, base = (abstract(PSPNet, block=block) for block in ("bottleneck", "base"))
    c3, c4 = (model.stages[stage][1].repmlp for stage in (1, 2))
    assert model.input_shape == (713, 713, 3)
    assert c3.input_shape == c4.input_shape == (90, 90, 64)
    assert c3.global_perceptron.fc1.kernel.shape == (9 * 9 * 64, 9 * 9 * 64 // 4)
    assert c4.global_perceptron.fc1.kernel.shape == (9 * 9 * 64, 9 * 9 * 64 // 8)
    # Partitions, kernels and groups are the backbone's at 320 pixels, so FC3 and the convolutions are ImageNet's.
    classifier = nnx.eval_shape(
        lambda: RepMLPResNet(
            block="bottleneck",
            image_size=(320, 320),
            partition_size=(10, 10),
            conv_kernels=(1, 3, 5, 7),
            groups=(4, 8),
            reduction=(1, 1),
            rngs=nnx.Rngs(0),
        )
    )
    here, there = (nnx.to_flat_state(nnx.state(each)) for each in (model, classifier))
    there = {place: array.shape for place, array in there}
    differing = {place[-2] for place, array in here if place[0] in ("stem", "stages") and array.shape != there[place]}
    assert differing == {"fc1", "fc2"}
    assert fuse_report(model).macs[1] < fuse_report(base).macs[1]


def test_sizes_that_do_not_fit_are_named_with_the_nearest_that_do():
    message = r"maps of height \{'c3': 89, 'c4': 89\}, which .*\(10, 10\).* heights that work are \[640, 713\]"
    with pytest.raises(ValueError, match=message):
        PSPNet(image_size=(711, 713), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"widths that work are \[64, 89\]"):
        make(image_size=(32, 79), partition_size=(2, 2), output_stride=16, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="output_stride=4 must be one of 8, 16, 32"):
        make(output_stride=4, rngs=nnx.Rngs(0))


class PixelClassifier(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(64, 5, param_dtype=jnp.float64, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(x)


class Pyramid(nnx.Module):
    def __call__(self, x):
        return jnp.concatenate([x, x], axis=-1)


def test_a_replaced_head_or_pyramid_takes_and_gives_one_map():
    model = build(lambda **options: make(image_size=(9, 9), partition_size=(2, 2), pad=True, **options))
    model.eval()
    x = random_input(model, 1)
    model.head = PixelClassifier()
    assert apply(model, x).shape == (1, 9, 9, 5)
    model.pyramid = Pyramid()
    last = quick_jit(lambda model, x: model.maps(x)[-1])(model, x)
    assert_close(apply(model, x), enlarge(model.head(Pyramid()(last)), (9, 9)), ROUNDING_F64)
