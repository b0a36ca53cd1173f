"""The pictures' data, and the commands that write them."""

import functools
import io
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, abstract, build, build_block, random_array, randomised
from flax import nnx
from test_cli import assert_refused, run
from tolerance import ROUNDING_F64, assert_close

from repmlp_jax import (
    PureMLP,
    RepMLP,
    RepMLPNet,
    RepMLPNetBlock,
    conv_to_fc,
    fuse_params,
    fuse_report,
    plots,
    quantise_params,
)
from repmlp_jax import save_model as save
from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, Gate
from repmlp_jax.models.cifar import WideConvNet

SMALL = dict(image_size=(8, 8), partition_size=(4, 4), conv_kernels=(3,))
GATED = dict(features=4, partition_size=(3, 5), sharesets=2)


@functools.cache
def block_of(case):
    return build(RepMLPNetBlock, **GATED) if case == "gated" else build_block(case)


def with_convolutions(case, *sizes):
    return build(RepMLP, **CASES[case] | dict(conv_kernels=sizes))


def shown(axes):
    """What a panel shows, with zeros where it is left out, as it is from the top down."""
    [image] = axes.images
    assert image.origin == "upper"
    bottom, top = axes.get_ylim()
    assert bottom > top
    return np.ma.filled(image.get_array(), 0)


def framed(axes):
    """(row, column) of the pixel that has a frame."""
    [frame] = axes.patches
    assert (frame.get_width(), frame.get_height()) == (1, 1)
    return frame.get_y() + 0.5, frame.get_x() + 0.5


# FC3's kernel.


@pytest.mark.parametrize("case", ["height is not width", "fewer outputs", "kernel exceeds partition", "gated"])
def test_fc3_is_what_was_trained_and_what_the_convolutions_add(case):
    block = block_of(case)
    parts = plots.fc3_parts(block)
    assert_close(parts["fused"], parts["trained"] + parts["convolutions"], ROUNDING_F64)
    fused = np.asarray(block.fused().kernel[...])
    np.testing.assert_array_equal(parts["fused"].reshape(fused.shape), fused)
    assert np.abs(parts["trained"]).max() > 0.1
    assert np.abs(parts["convolutions"]).max() > 0.1


def test_the_parts_do_not_depend_on_each_other():
    block = build_block()
    before = plots.fc3_parts(block)
    for convolution in block.local_perceptron.values():
        convolution.norm.scale[...] = convolution.norm.scale[...] * 0
    after = plots.fc3_parts(block)
    np.testing.assert_array_equal(after["trained"], before["trained"])
    assert not after["convolutions"].any()


def test_the_panels_of_figure_5_are_magnitudes_of_one_point_and_one_channel():
    block = block_of("height is not width")  # two groups of 2 channels, partitions of 2×6
    figure = plots.fc3_kernels(block, (1, 4), output_channel=3, input_channel=2)
    parts = plots.fc3_parts(block)
    signed = {name: part[1, :, :, 0, 1, 4, 1] for name, part in parts.items()}
    trained, convolutions, fused = (shown(axes) for axes in figure.axes[:3])
    np.testing.assert_array_equal(trained, np.abs(signed["trained"]))
    np.testing.assert_array_equal(convolutions, np.abs(signed["convolutions"]))
    assert_close(fused, np.abs(signed["trained"] + signed["convolutions"]), ROUNDING_F64)
    assert [framed(axes) for axes in figure.axes[:3]] == [(1, 4)] * 3
    assert "row 1, column 4, channel 3" in figure.get_suptitle()
    assert "input channel 2" in figure.get_suptitle()


def test_the_panels_share_one_scale_and_one_colour_bar():
    figure = plots.fc3_kernels(block_of("plain"))
    [norm] = {id(axes.images[0].norm): axes.images[0].norm for axes in figure.axes[:3]}.values()
    values = np.concatenate([shown(axes).ravel() for axes in figure.axes[:3]])
    assert norm.vmax == values.max()
    assert norm.vmin == max(values[values > 0].min(), values.max() / 1000)
    [bar] = figure.axes[3:]
    assert bar.get_ylabel() == "magnitude of the weight"
    labels = [label.get_text() for label in bar.get_yticklabels()]
    assert len(labels) > 1
    assert all(norm.vmin <= float(label) <= norm.vmax for label in labels)


def test_the_middle_of_the_first_channel_is_drawn_unless_told_otherwise():
    block = block_of("plain")
    expected = plots.fc3_kernels(block, (1, 1), output_channel=0, input_channel=0)
    figure = plots.fc3_kernels(block)
    assert figure.get_suptitle() == expected.get_suptitle()
    second = plots.fc3_kernels(block, output_channel=2)
    assert "input channel 2" in second.get_suptitle()  # the first of its group


def test_share_sets_are_drawn_as_channels():
    block = block_of("gated")
    figure = plots.fc3_kernels(block, (2, 0), output_channel=1)
    fused = np.asarray(block.fused().kernel_by_pixel())
    np.testing.assert_array_equal(shown(figure.axes[2]), np.abs(fused[1, :, :, 0, 2, 0, 0]))


def test_exact_zeros_are_told_from_small_weights():
    block = with_convolutions("plain", 1)
    figure = plots.fc3_kernels(block)
    assert np.count_nonzero(shown(figure.axes[1])) == 1
    [legend] = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["the output pixel's own place", "exactly zero"]
    everywhere = plots.fc3_kernels(block_of("kernel exceeds partition"))  # 7×7 on 3×2
    assert len(everywhere.legends[0].get_texts()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(pixel=(3, 0)), r"pixel \(3, 0\) is not in a partition of rows 0 to 2, columns 0 to 2"),
        (dict(pixel=(0, -1)), r"pixel \(0, -1\) is not in"),
        (dict(output_channel=4), "output_channel=4: there are 4, from 0"),
        (dict(output_channel=-1), "output_channel=-1 must not be below 0"),
        (dict(input_channel=2), "input_channel=2 is not in the group of output_channel=0, which sees channels 0 to 1"),
    ],
)
def test_points_that_there_are_not(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.fc3_kernels(block_of("plain"), **arguments)


@pytest.mark.usefixtures("unchecked_types")
def test_blocks_without_the_parts():
    block = build_block()
    with pytest.raises(TypeError, match=r"a FusedRepMLP is fused.*Pass the trained model"):
        plots.fc3_kernels(block.fused())
    with pytest.raises(TypeError, match="takes a RepMLP or RepMLPNetBlock, not a Linear"):
        plots.fc3_kernels(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="fused or not, not a Linear"):
        plots.receptive_fields(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="has no convolutions: its fused FC3 is the trained one"):
        plots.fc3_kernels(build_block("no convolutions"))
    block.partition_perceptron = None
    with pytest.raises(ValueError, match="has no FC3"):
        plots.fc3_kernels(block)


def test_weights_that_cannot_be_drawn():
    fused = block_of("plain").fused()
    fused.kernel[...] = fused.kernel[...] * 0
    with pytest.raises(ValueError, match="all weights to show are zero"):
        plots.receptive_fields(fused)
    fused.kernel[...] = fused.kernel[...] * np.nan
    with pytest.raises(ValueError, match="9 of the 9 weights to show are not finite"):
        plots.receptive_fields(fused, [(0, 0)])


# What a pixel sees.


def test_the_receptive_field_of_a_convolution_is_its_window():
    block = with_convolutions("one partition", 3)
    block.partition_perceptron = None
    figure = plots.receptive_fields(block)
    conv, norm = block.local_perceptron["3x3"].conv, block.local_perceptron["3x3"].norm
    kernel, scale, var = (np.asarray(variable[...]) for variable in (conv.kernel, norm.scale, norm.var))
    kernel = kernel * scale / np.sqrt(var + norm.epsilon)
    sizes = np.sqrt(np.square(kernel).mean((2, 3)))
    for axes, pixel in zip(figure.axes, [(row, column) for row in (0, 3, 5) for column in (0, 3, 5)], strict=False):
        assert framed(axes) == pixel
        expected = np.zeros((8, 8))
        expected[pixel[0] : pixel[0] + 3, pixel[1] : pixel[1] + 3] = sizes
        np.testing.assert_array_equal(shown(axes) > 0, expected[1:-1, 1:-1] > 0)
        assert_close(shown(axes), expected[1:-1, 1:-1], ROUNDING_F64)


@pytest.mark.parametrize("case", ["fewer outputs", "gated"])
def test_a_fused_block_and_the_one_it_was_made_of_look_the_same(case):
    block = block_of(case)
    for one, other in zip(plots.receptive_fields(block).axes, plots.receptive_fields(block.fused()).axes, strict=True):
        if one.images:
            np.testing.assert_array_equal(shown(one), shown(other))


def test_pixels_of_ones_own_choice():
    fused = block_of("height is not width").fused()
    pixels = [(0, 1), (1, 5), (1, 0), (0, 0), (0, 3)]
    figure = plots.receptive_fields(fused, pixels)
    panels = [axes for axes in figure.axes if axes.images]
    assert [framed(axes) for axes in panels] == pixels
    assert [axes.get_title() for axes in panels][:2] == ["row 0, column 1", "row 1, column 5"]
    with pytest.raises(ValueError, match=r"pixel \(2, 0\) is not in a partition of rows 0 to 1, columns 0 to 5"):
        plots.receptive_fields(fused, [(0, 0), (2, 0)])
    with pytest.raises(ValueError, match="pixels is empty"):
        plots.receptive_fields(fused, [])


@pytest.mark.parametrize(("size", "panels"), [((1, 1), 1), ((8, 1), 3), ((1, 8), 3), ((2, 3), 6), ((20, 20), 9)])
def test_partitions_of_every_shape(size, panels, tmp_path):
    pixels = math.prod(size)
    kernel = jnp.asarray(random_array(1, pixels, pixels))
    fc = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    block = FusedRepMLPNetBlock(1, size, False, Gate(fc, fc), kernel, jnp.zeros((1, pixels)), None)
    figure = plots.receptive_fields(block)
    assert sum(bool(axes.images) for axes in figure.axes) == panels
    if panels < 4:
        figure.savefig(tmp_path / "field.png")


def test_bfloat16_is_drawn_as_it_is():
    fused = block_of("gated").fused()
    fused.kernel = nnx.Param(fused.kernel[...].astype(jnp.bfloat16))
    figure = plots.receptive_fields(fused, [(1, 2)])
    expected = np.asarray(fused.kernel_by_pixel()).astype(np.float32)[:, :, :, 0, 1, 2, 0]
    np.testing.assert_array_equal(shown(figure.axes[0]), np.sqrt(np.square(expected).mean(0)))


@pytest.mark.parametrize("lowest", [0.001, 0.02, 0.034, 0.11, 0.49, 0.6, 1])
def test_the_colour_bar_has_several_ticks_on_scales_of_every_length(lowest):
    largest = 1.07  # so that no end is a round number
    kernel = jnp.asarray(np.geomspace(lowest * largest, largest, 16).reshape(1, 4, 4))
    fc = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    block = FusedRepMLPNetBlock(1, (2, 2), False, Gate(fc, fc), kernel, jnp.zeros((1, 4)), None)
    bar = plots.receptive_fields(block).axes[-1]
    low, high = bar.get_ylim()
    assert 2 < sum(low <= tick <= high for tick in bar.get_yticks()) < 10


# The kernels of a model.


class Backwards(nnx.Module):
    """Someone's model: the last convolution is the first by its name, and a norm and a branch are folded."""

    def __init__(self, *, rngs):
        self.c = nnx.Conv(2, 4, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.b = nnx.Conv(4, 4, (3, 5), rngs=rngs)
        self.beside_b = nnx.Conv(4, 4, (1, 1), rngs=rngs)
        self.a = nnx.Conv(4, 2, (3,), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.c(x)))
        return self.a((self.b(x) + self.beside_b(x))[:, 0])


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_the_kernels_of_someones_fused_model_are_drawn_in_the_order_of_its_call():
    fused = fuse_params(randomised(abstract(Backwards)), jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))
    figure = plots.plot_kernels(fused)
    assert titles(figure) == ["c\nConv 3×3", "b\nConv 3×5", "a\nConv 1×3"]
    kernel = np.asarray(fused.b.kernel[...])
    sizes = np.sqrt((kernel**2).mean((2, 3)))
    assert_close(shown(figure.axes[1]), sizes / sizes.max(), 1e-6)
    assert figure.axes[-1].get_ylabel() == "share of the panel's largest"
    assert titles(plots.plot_kernels(fused, ["b", "beside_b"])) == ["b\nConv 3×5"]


@pytest.mark.parametrize("form", [lambda model: model, fuse_params, lambda model: quantise_params(fuse_params(model))])
def test_the_kernels_of_a_net_of_blocks_are_those_that_run(form):
    model = form(randomised(abstract(PureMLP, widths=(4,), **SMALL)))
    figure = plots.plot_kernels(model)
    assert [title.split("\n")[0] for title in titles(figure)] == ["stages.0.0", "stages.0.2"]
    block = model.stages[0][2]
    [panel, _] = plots.receptive_fields(block, [(2, 2)]).axes
    assert_close(shown(figure.axes[1]), shown(panel) / shown(panel).max(), ROUNDING_F64)


def test_a_stack_of_convolutions_is_one_panel():
    stack = nnx.vmap(lambda rngs: nnx.Conv(2, 2, (3, 3), rngs=rngs))(nnx.Rngs(0).split(3))
    figure = plots.plot_kernels(nnx.Sequential(stack))
    expected = np.sqrt(np.square(np.asarray(stack.kernel[...])).mean((0, 3, 4)))
    assert_close(shown(figure.axes[0]), expected / expected.max(), 1e-6)


def test_a_model_without_kernels_to_draw():
    net = nnx.Sequential(nnx.Conv(2, 2, (1, 1), rngs=nnx.Rngs(0)), nnx.Conv(2, 2, (3, 3), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"'layers.0' of this Sequential holds no convolution larger than 1×1"):
        plots.plot_kernels(net, "layers.0")
    with pytest.raises(ValueError, match="this Linear holds no convolution larger than 1×1 and no RepMLP block"):
        plots.plot_kernels(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="plot_kernels: this PureMLP is abstract"):
        plots.plot_kernels(abstract(PureMLP, widths=(4,), **SMALL))


# The identity trick.


def test_every_step_of_the_identity_trick_is_a_row_of_the_fc():
    pixels = ((0, 0), (1, 2), (3, 1))
    figure = plots.identity_trick(pixels=pixels)
    of_kernel, of_matrix, *steps = figure.axes
    kernel = shown(of_kernel)
    expected = np.asarray(conv_to_fc(kernel[:, :, None, None], (4, 4))).reshape(16, 16)
    np.testing.assert_array_equal(shown(of_matrix), expected)
    for (row, column), of_image, of_response, frame in zip(
        pixels, steps[::2], steps[1::2], of_matrix.patches, strict=True
    ):
        number = 4 * row + column
        np.testing.assert_array_equal(shown(of_image).ravel(), np.eye(16)[number])
        np.testing.assert_array_equal(shown(of_response).ravel(), expected[number])
        assert (frame.get_y() + 0.5, frame.get_width(), frame.get_height()) == (number, 16, 1)
        assert f"row {number}\n" in of_response.get_title()
        np.testing.assert_array_equal(written(of_response).ravel(), expected[number])
    np.testing.assert_array_equal(written(of_matrix), expected)


def written(axes):
    """The numbers that are written in the squares, where they stand."""
    numbers = np.full(axes.images[0].get_array().shape, np.nan)
    for text in axes.texts:
        column, row = text.get_position()
        numbers[row, column] = float(text.get_text())
    return numbers


def test_other_kernels_can_be_drawn():
    kernel = np.array([[0, 2, 0.5]])
    figure = plots.identity_trick(kernel, [(2, 2)])
    np.testing.assert_array_equal(shown(figure.axes[3]), [[0] * 4, [0] * 4, [0, 0.5, 2, 0], [0] * 4])
    whole = plots.identity_trick(np.arange(9).reshape(3, 3), [(0, 0)])
    np.testing.assert_array_equal(shown(whole.axes[3])[:2, :2], [[4, 3], [1, 0]])


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kernel=np.ones((5, 3))), r"not of shape \(5, 3\)"),
        (dict(kernel=np.ones((3, 2))), r"not of shape \(3, 2\)"),
        (dict(kernel=np.ones((3, 3, 1))), r"not of shape \(3, 3, 1\)"),
        (dict(kernel=-np.ones((3, 3))), "finite numbers that are not negative"),
        (dict(kernel=np.full((3, 3), np.inf)), "finite numbers that are not negative"),
        (dict(pixels=()), r"pixels=\(\) are not one to three pixels"),
        (dict(pixels=((0, 4),)), "rows and columns 0 to 3"),
    ],
)
def test_what_the_identity_trick_is_not_drawn_of(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.identity_trick(**arguments)


# What fusing does to a model.


@pytest.fixture(scope="module")
def report():
    return fuse_report(abstract(PureMLP, widths=(4, 8), **SMALL))


def lengths(axes):
    """Bars before and after, by the name beside them."""
    names = [label.get_text() for label in axes.figure.axes[0].get_yticklabels()]
    before, after = ([bar.get_width() for bar in bars] for bars in axes.containers)
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    return dict(zip(names, zip(before, after, strict=True), strict=True))


def test_bars_are_the_counts_of_the_report(report):
    parameters, macs = plots.fuse_bars(report).axes
    expected = {block.path: block.parameters for block in report.blocks}
    assert lengths(parameters) == expected | {"everything else": (90, 90)}  # the classifier
    assert lengths(macs) == {block.path: block.macs for block in report.blocks} | {"everything else": (80, 80)}
    assert parameters.get_title() == f"parameters: {report.parameters[0]:,} → {report.parameters[1]:,}"
    block = report.blocks[1]
    assert f"{block.macs[0]:,} → {block.macs[1]:,}" in [text.get_text() for text in macs.texts]
    for axes, whole in ((parameters, report.parameters), (macs, report.macs)):
        assert tuple(np.sum(list(lengths(axes).values()), 0)) == whole


def test_blocks_are_added_up_by_the_beginning_of_their_paths(report):
    for depth, names in ((1, ["embedding", "stages"]), (2, ["embedding", "stages.0", "stages.1"])):
        figure = plots.fuse_bars(report, depth)
        assert list(lengths(figure.axes[0])) == [*names, "everything else"]
        assert tuple(np.sum(list(lengths(figure.axes[0]).values()), 0)) == report.parameters
    with pytest.raises(ValueError, match="depth=0 must not be below 1"):
        plots.fuse_bars(report, 0)


def test_a_model_whose_input_is_not_known():
    def layers(*, rngs):
        block = RepMLP(**CASES["plain"], rngs=rngs)
        return nnx.Sequential(block, nnx.Conv(4, 4, (3, 3), rngs=rngs), ConvBN(4, 4, 3, rngs=rngs))

    parameters, macs = plots.fuse_bars(fuse_report(abstract(layers))).axes
    assert lengths(parameters)["everything else"] == (9 * 16 + 4,) * 2
    assert [text.get_text() for text in macs.texts][1:] == ["not known"] * 2
    assert macs.get_title() == "multiply-accumulates: not known"
    [only] = plots.fuse_bars(fuse_report(abstract(ConvBN, 4, 4, 3))).axes
    assert only.get_title().startswith("parameters")


def test_a_single_block_is_its_own_model():
    parameters, _ = plots.fuse_bars(fuse_report(abstract(RepMLP, **CASES["plain"]))).axes
    assert list(lengths(parameters)) == ["the model itself"]


def test_a_model_that_is_fused_already_has_nothing_to_compare():
    for model in (nnx.eval_shape(fuse_params, abstract(ConvBN, 4, 4, 3)), abstract(nnx.BatchNorm, 3)):
        with pytest.raises(ValueError, match="there is nothing to compare: the model is fused already"):
            plots.fuse_bars(fuse_report(model))


# Curves.

CURVES = """epoch,step,learning_rate,train_loss,train_accuracy,test_loss,test_accuracy
1,11,0.1,2.25,0.25,2.5,0.125
2,22,0.05,1.5,0.5,1.75,0.375
"""


def test_curves_are_read_from_a_run(tmp_path):
    (tmp_path / "metrics.csv").write_text(CURVES)
    rows = plots.read_rows(tmp_path)
    assert [row["epoch"] for row in rows] == [1, 2]
    losses, shares = plots.learning_curves(rows).axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "train": [2.25, 1.5],
        "test": [2.5, 1.75],
    }
    assert {line.get_label(): list(line.get_ydata()) for line in shares.lines} == {
        "train accuracy": [25, 50],
        "test accuracy": [12.5, 37.5],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (CURVES.splitlines()[0], "has no epoch yet"),
        (CURVES.replace("0.5,1.75", "0.5,half"), "is damaged: row 2 .*'half'"),
        (CURVES.removesuffix(",0.375\n"), "is damaged: row 2"),
        (CURVES.replace("train_loss", "loss"), "is damaged: row 1 .*'train_loss'"),
        (CURVES.replace("0.125", "0.125,7"), "is damaged: row 1"),
        (CURVES.replace("2,22", "0,22"), r"is damaged: row 2 .*\(it is of epoch 0\)"),
        (CURVES + "\0" * 200_000, "is damaged: row 3"),
        (CURVES + "é", "is damaged: row"),
    ],
    ids=["only a heading", "a word", "cut off", "another file", "too many", "no epoch", "zeros", "no UTF-8"],
)
def test_damaged_curves(text, message, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        plots.read_rows(tmp_path)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no metrics.csv: it is not the folder of a run"):
        plots.read_rows(tmp_path)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("draw", "error", "message"),
    [
        (lambda: plots.fc3_kernels(block_of("plain"), 3), TypeError, r"pixel=3 must be \(row, column\), two integers"),
        (lambda: plots.fc3_kernels(block_of("plain"), (0, 1.5)), TypeError, r"pixel=\(0, 1.5\) must be"),
        (
            lambda: plots.fc3_kernels(block_of("plain"), output_channel=1.0),
            TypeError,
            "output_channel must be a whole number, not 1.0",
        ),
        (
            lambda: plots.fc3_kernels(block_of("plain"), input_channel="a"),
            TypeError,
            "input_channel must be a whole number, not 'a'",
        ),
        (lambda: plots.receptive_fields(block_of("plain"), 3), TypeError, "pixels=3 must be a list of"),
        (lambda: plots.receptive_fields(block_of("plain"), (0, 1)), TypeError, r"pixels=\(0, 1\) must be a list of"),
        (lambda: plots.identity_trick(np.array([["a"]])), TypeError, "kernel must hold real numbers, not <U1"),
        (lambda: plots.identity_trick(pixels=(0, 0)), TypeError, r"pixels=\(0, 0\) must be a list of"),
        (lambda: plots.fuse_bars("digits"), TypeError, "report must be what fuse_report returns, not str"),
        (
            lambda: plots.fuse_bars(fuse_report(build_block()), 1.5),
            TypeError,
            r"depth must be a whole number, not 1\.5",
        ),
        (lambda: plots.read_rows(3), TypeError, "run must be a path, not a int"),
        (lambda: plots.learning_curves("runs/digits"), TypeError, "rows must be a list of dicts, .* not 'runs/digits'"),
        (lambda: plots.learning_curves([{"epoch": 1}]), ValueError, "row 1 of rows has no 'step'; it has epoch"),
        (lambda: plots.roc_curve([([0], [1])]), TypeError, "curves must be a dict, name → false and true .* not list"),
        (
            lambda: plots.roc_curve({"a": [0, 1, 2]}),
            TypeError,
            "curve 'a' of curves must be a pair of lists",
        ),
        (lambda: plots.roc_curve({"a": ([0, 1], [1])}), ValueError, "curve 'a' has 2 false and 1 true accept rates"),
    ],
)
def test_arguments_of_another_type_are_named(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


# The commands.


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saved models: trained, fused, and one without a block."""
    path = tmp_path_factory.mktemp("models")
    trained = randomised(abstract(PureMLP, widths=(4,), **SMALL))
    save(path / "trained", trained)
    save(path / "fused", fuse_params(trained))
    save(path / "convnet", randomised(abstract(WideConvNet, image_size=(8, 8), widths=(2,))))
    (path / "metrics.csv").write_text(CURVES)
    return path


def assert_drawn(result, out):
    assert result.exit_code == 0, result.stderr
    assert f"saved: {out}" in result.stdout
    assert out.read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    "command",
    [
        ["kernels", "trained", "--block", "1", "--pixel", "1", "2", "--output-channel", "3", "--input-channel", "2"],
        ["kernels", "fused"],
        ["kernels", "convnet"],
        ["receptive-field", "fused"],
        ["identity"],
        ["report", "wide_convnet", "--depth", "1"],
        ["curves", "."],
    ],
    ids=" ".join,
)
def test_every_picture_is_a_png(command, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders)
    kind, *rest = command
    out = tmp_path / "pictures" / "drawn.png"
    assert_drawn(run("plot", kind, *rest[:1], out, *rest[1:]), out)
    assert_refused(run("plot", kind, *rest[:1], out, *rest[1:]), "exists; --overwrite replaces it")


def test_a_picture_is_replaced_if_told_so(folders, tmp_path):
    out = tmp_path / "drawn.png"
    out.write_text("another")
    assert_refused(run("plot", "report", folders / "trained", out), "exists; --overwrite replaces it")
    assert out.read_text() == "another"
    assert_drawn(run("plot", "report", folders / "trained", out, "--overwrite"), out)


def test_blocks_have_numbers(folders, tmp_path):
    drawn = run("plot", "receptive-field", folders / "fused", tmp_path / "field.png", "--block", "1")
    assert "block 1 of 2, counted from 0: stages.0.2" in drawn.stdout
    message = "has no block 2: its blocks are 0 to 1 (stages.0.0, stages.0.2)"
    assert_refused(run("plot", "kernels", folders / "trained", tmp_path / "no.png", "--block", 2), message)
    nothing = run("plot", "receptive-field", folders / "convnet", tmp_path / "no.png")
    assert_refused(nothing, "convnet is a WideConvNet that holds no RepMLP block")
    assert not (tmp_path / "no.png").exists()


def test_a_block_inside_a_larger_one_is_found(tmp_path):
    arguments = dict(stage_sizes=(2,), widths=(4,), num_classes=2, partition_sizes=((4, 4),), sharesets=(1,))
    save(tmp_path / "net", randomised(abstract(RepMLPNet, **arguments)))
    out = tmp_path / "kernels.png"
    result = run("plot", "kernels", tmp_path / "net", out, "--block", 1)
    assert_drawn(result, out)
    assert "block 1 of 2, counted from 0: stages.0.1.block" in result.stdout


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_drawn_is_one_line(folders, tmp_path):
    out = tmp_path / "no.png"
    fused = run("plot", "kernels", folders / "fused", out, "--block", "1", "--pixel", "1", "2")
    assert_refused(fused, "--block and --pixel are of a model with trained RepMLP blocks")
    assert_refused(run("plot", "kernels", tmp_path, out), "holds no model.json")
    assert_refused(run("plot", "report", folders / "fused", out), "the model is fused already")
    assert_refused(run("plot", "report", "wide_convnt", out), "the nearest is 'wide_convnet'")
    assert_refused(run("plot", "curves", tmp_path, out), "holds no metrics.csv")
    assert_refused(run("plot", "identity", tmp_path / "picture"), "picture has no ending that says which picture it is")
    assert_refused(run("plot", "identity", tmp_path / "a.picture"), "Format 'picture' is not supported")
    assert not out.exists()


@pytest.mark.parametrize("kind", ["kernels", "receptive-field", "identity", "report", "curves"])
def test_every_kind_shows_an_example(kind):
    assert f"Example: repmlp-jax plot {kind}" in " ".join(run("plot", kind, "--help").stdout.split())


# What is confused.


def test_confusions_are_shares_of_the_true_class_with_their_counts():
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 0, 1000]])
    axes, _ = plots.confusion_matrix(matrix, ["cat", "dog", "cow"]).axes
    np.testing.assert_array_equal(shown(axes), [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]])
    assert {(text.get_text(), text.get_position()) for text in axes.texts} == {
        ("3", (0, 0)),
        ("1", (1, 0)),
        ("1,000", (2, 2)),
    }
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "cow"]
    # A class without images has a grey row.
    [grey] = axes.patches
    assert (grey.get_y(), grey.get_height()) == (0.5, 1)


def test_names_of_classes_are_no_formulas_and_are_cut_off_where_they_are_long(recwarn):
    figure = plots.confusion_matrix(np.eye(2, dtype=int), [r"$\frac$", 300 * "x"])
    figure.savefig(io.BytesIO())
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == [r"$\frac$", f"{29 * 'x'}…"]
    assert not recwarn.list


def test_many_classes_have_no_names_and_numbers():
    axes, _ = plots.confusion_matrix(np.eye(100, dtype=int), list(map(str, range(100)))).axes
    assert not axes.texts
    assert len(axes.get_yticks()) < 20


@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2,)])
def test_a_matrix_of_other_classes_is_refused(shape):
    with pytest.raises(ValueError, match="does not fit 2 names of classes"):
        plots.confusion_matrix(np.zeros(shape, int), ["cat", "dog"])
