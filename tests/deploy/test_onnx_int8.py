"""ONNX files in int8: what becomes int8, what is reported, and what is not written."""

import logging
import re
from collections import Counter

import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, quick_jit, randomised
from flax import nnx
from typer.testing import CliRunner

from repmlp_jax import PureMLP, export_onnx, export_onnx_int8, fuse_params, load_model, save_model
from repmlp_jax.cli import app
from repmlp_jax.data import digits
from repmlp_jax.quantisation.quantise import is_quantised

onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")

ABOUT = dict(mean=list(digits.MEAN), std=list(digits.STD), class_names=list(digits.CLASS_NAMES))
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8)


@pytest.fixture(scope="module")
def model():
    sizes = dict(image_size=(8, 8), in_features=1, widths=(8, 16), partition_size=(4, 4), conv_kernels=(1, 3))
    return randomised(abstract(lambda **options: PureMLP(10, groups=2, **sizes, **options)))


@pytest.fixture(scope="module")
def fused(model):
    return quick_jit(fuse_params)(model)


@pytest.fixture
def right(fused, tmp_path):
    """The classes that the model in float32 gives."""
    export_onnx(fused, tmp_path / "float32.onnx", preprocessing=ABOUT, preprocess=True)
    found = onnxruntime.InferenceSession(tmp_path / "float32.onnx").run(None, {"images": PIXELS})[0].argmax(1)
    (tmp_path / "float32.onnx").unlink()
    return found


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("preprocess", [False, True])
def test_products_are_in_int8_without_data(fused, preprocess, tmp_path):
    path = tmp_path / "net.onnx"
    report = export_onnx_int8(fused, path, preprocessing=ABOUT, preprocess=preprocess)
    found = operators(path)
    assert found["MatMulInteger"] > 0
    assert found["MatMul"] == 0
    assert report.nbytes[1] == path.stat().st_size < report.nbytes[0]
    assert (report.accuracy, report.kept[0]) == (None, found["Conv"])
    assert 0 < report.difference < 0.05
    assert re.search(r"bytes .* → .*\nmilliseconds an image .*\noutputs differ by \d\.\d+%", str(report))
    (images,) = onnxruntime.InferenceSession(path).get_inputs()
    assert (images.type, images.shape) == ("tensor(uint8)" if preprocess else "tensor(float)", ["N", 8, 8, 1])


def test_every_output_has_a_scale_of_its_own_also_in_groups(fused, tmp_path):
    export_onnx_int8(fused, tmp_path / "net.onnx", calibration=PIXELS, preprocessing=ABOUT)
    file = onnx.load(tmp_path / "net.onnx")
    constants = {constant.name: tuple(constant.dims) for constant in file.graph.initializer}
    weights = [
        (constants[node.input[0]], constants[node.input[1]], node.attribute[0].i)
        for node in file.graph.node
        if node.op_type == "DequantizeLinear" and len(constants.get(node.input[0], ())) > 1
    ]
    assert weights
    assert all(scale == (shape[axis],) for shape, scale, axis in weights)
    assert {axis for shape, _, axis in weights if len(shape) == 2} == {1}
    assert {len(shape) for shape, _, _ in weights} <= {2, 4}


def test_accuracy_is_measured_on_the_images_given(fused, right, tmp_path):
    report = export_onnx_int8(
        fused, tmp_path / "net.onnx", calibration=PIXELS, test=(PIXELS, right), largest_loss=1, preprocessing=ABOUT
    )
    assert report.accuracy[0] == 1
    outputs = onnxruntime.InferenceSession(tmp_path / "net.onnx").run(
        None, {"images": ((PIXELS / 255 - digits.MEAN) / digits.STD).astype(np.float32)}
    )[0]
    assert report.accuracy[1] == (outputs.argmax(1) == right).mean()
    assert "accuracy" in str(report)


class TwentyMatrices(nnx.Module):
    """A product of more groups than are taken apart."""

    def __init__(self):
        self.input_shape = (2, 20, 4)
        self.kernel = nnx.Param(np.random.default_rng(0).normal(size=(20, 4, 4)).astype(np.float32))
        self.last = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        y = x.transpose(2, 0, 1, 3).reshape(20, -1, 4) @ self.kernel[...]
        return self.last(y.transpose(1, 0, 2).reshape(x.shape[0], 2, 20, 4).sum((1, 2)))


def test_products_of_many_groups_stay_and_are_counted(tmp_path):
    report = export_onnx_int8(TwentyMatrices(), tmp_path / "net.onnx")
    assert report.kept == (1, 2)
    assert "1 of 2 products and convolutions stay in float32" in str(report)


class Attention(nnx.Module):
    """One product with weights, and two of what depends on the image."""

    def __init__(self):
        self.input_shape = (4, 4, 8)
        self.linear = nnx.Linear(8, 8, rngs=nnx.Rngs(0))

    def __call__(self, x):
        x = self.linear(x.reshape(x.shape[0], 16, 8))
        return nnx.softmax(x @ x.swapaxes(1, 2)) @ x


@pytest.mark.parametrize(("calibration", "kept"), [(None, 2), (np.repeat(PIXELS[:, :4, :4], 8, axis=3), 0)])
def test_products_without_weights_stay_and_are_counted_if_nothing_is_calibrated(calibration, kept, tmp_path):
    report = export_onnx_int8(Attention(), tmp_path / "net.onnx", calibration=calibration, largest_loss=1)
    assert report.kept == (kept, 3)
    in_float = operators(tmp_path / "net.onnx")["MatMul"] if calibration is None else 0
    assert in_float == kept


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_quantised_is_not_written(fused, right, tmp_path):
    def write(**options):
        export_onnx_int8(fused, tmp_path / "net.onnx", preprocessing=ABOUT, **options)

    takes = r"and the model takes images \(N, 8, 8, 1\), at least one"
    for options, error, message in (
        (dict(calibration=PIXELS[:, :7]), ValueError, rf"calibration has shape \(20, 7, 8, 1\), {takes}"),
        (dict(calibration=PIXELS[:0]), ValueError, rf"calibration has shape \(0, 8, 8, 1\), {takes}"),
        (dict(calibration=PIXELS / 255), TypeError, "calibration must be images in uint8, not float64"),
        (dict(calibration=[[1]]), TypeError, "calibration must be images in a NumPy array of uint8, not in a list"),
        (dict(calibration=jnp.asarray(PIXELS)), TypeError, "in a NumPy array of uint8, not in a ArrayImpl"),
        (dict(test=(PIXELS, right[:3])), ValueError, r"test has 20 images and labels of shape \(3,\)"),
        (dict(test=(PIXELS, right + 0.5)), TypeError, "labels of test must be .* in integers, not float64"),
        (dict(test=(PIXELS, np.full(20, "7"))), TypeError, "labels of test must be .* in integers, not <U1"),
        (dict(test=(PIXELS, right * 0 + 10)), ValueError, "are from 10 to 10, and the model has 10 classes, from 0"),
        (dict(test=(PIXELS, right * 0 - 1)), ValueError, "are from -1 to -1, and the model has 10 classes"),
        (dict(test=(PIXELS[0], right)), ValueError, r"test has shape \(8, 8, 1\)"),
        (dict(largest_loss=0), ValueError, r"int8 loses 0\.\d+ of the outputs, .* more than largest_loss=0: pass a"),
        (dict(opset=12), ValueError, "opset=12 must be from 13"),
    ):
        with pytest.raises(error, match=message):
            write(**options)
    assert not list(tmp_path.iterdir())


def test_labels_of_images_do_not_fit_a_model_of_maps(tmp_path):
    net = nnx.Sequential(nnx.Conv(1, 8, (3, 3), rngs=nnx.Rngs(0)))
    net.input_shape = (8, 8, 1)
    with pytest.raises(ValueError, match=r"a class for each image, and the model gives shape \(N, 8, 8, 8\)"):
        export_onnx_int8(net, tmp_path / "net.onnx", test=(PIXELS[:8], np.arange(8)))
    assert not list(tmp_path.iterdir())


def test_logging_stays_as_it_was(fused, tmp_path):
    logging.disable(logging.ERROR)
    try:
        export_onnx_int8(fused, tmp_path / "net.onnx")
        assert logging.root.manager.disable == logging.ERROR
    finally:
        logging.disable(logging.NOTSET)


class Linear(nnx.Module):
    """A classifier whose class depends on the image."""

    def __init__(self):
        self.input_shape = (8, 8, 1)
        self.linear = nnx.Linear(64, 10, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(x.reshape(x.shape[0], 64) - np.float32(0.5))


def test_what_loses_too_much_accuracy_is_written_only_if_asked(tmp_path):
    net, out = Linear(), tmp_path / "net.onnx"
    test = PIXELS, np.asarray(net(PIXELS / np.float32(255))).argmax(1)
    black = np.zeros_like(PIXELS)  # Other images have numbers outside the range of these.
    message = (
        r"int8 loses 0\.\d+ of the accuracy \(100\.00% → \d+\.00%\), more than largest_loss=0.01: pass a larger one"
    )
    with pytest.raises(ValueError, match=message):
        export_onnx_int8(net, out, calibration=black, test=test)
    assert not out.exists()
    report = export_onnx_int8(net, out, calibration=black, test=test, largest_loss=1)
    assert report.accuracy[1] < report.accuracy[0] == 1


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture
def folder(model, tmp_path):
    save_model(tmp_path / "model", model, preprocessing=ABOUT)
    return tmp_path / "model"


@pytest.mark.slow
def test_the_command_line_calibrates_and_tests_with_a_dataset(folder, tmp_path):
    out = tmp_path / "net.onnx"
    result = run("export", folder, out, "--format", "onnx", "--int8", "--dataset", "digits", "--largest-loss", 1)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"bytes .*\nmilliseconds .*\naccuracy .*%\noutputs differ .*\nsaved: ", result.stdout)
    assert operators(out)["QuantizeLinear"] > 0
    for options, message in (
        (("--format", "onnx", "--dataset", "digits"), "--dataset is of --int8"),
        (("--int8",), "--int8 is of --format onnx"),
        (("--format", "onnx", "--int8", "--no-fuse"), "--int8 needs a fused model: leave out --no-fuse"),
    ):
        refused = run("export", folder, tmp_path / "other", *options)
        assert (refused.exit_code, refused.stderr) == (2, f"error: {message}\n")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_command_line_quantises_a_saved_model_which_is_then_evaluated(folder, tmp_path):
    result = run("quantise", folder, tmp_path / "int8")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"is fused first\nbytes of parameters .* → .*\nsaved: ", result.stdout)
    assert is_quantised(load_model(tmp_path / "int8"))
    assert run("evaluate", tmp_path / "int8", "--dataset", "digits").stdout.startswith("accuracy ")
    assert "is in int8 already" in run("quantise", tmp_path / "int8", tmp_path / "again").stderr
    assert "exists; --overwrite replaces it" in run("quantise", folder, tmp_path / "int8").stderr
