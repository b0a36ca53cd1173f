"""ONNX files: what onnxruntime makes of them at every opset, what they hold, and what cannot be written."""

import json
import sys
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, build_block, quick_jit, random_input, randomised
from cases import evaluate as forward
from flax import nnx
from jax import lax
from tolerance import ROUNDING_F32, assert_close
from typer.testing import CliRunner

from repmlp_jax import PSPNet, PureMLP, RepMLPNet, RepMLPResNet, export_onnx, fuse_params, save_model
from repmlp_jax.cli import app
from repmlp_jax.models.face import FaceResNet
from repmlp_jax.version import __version__

RESNET = dict(stage_sizes=(1, 2, 1, 1), image_size=(32, 32), partition_size=(2, 2), conv_kernels=(1, 3))
NETS = {
    "PureMLP": lambda **options: PureMLP(
        image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3), **options
    ),
    "RepMLPNet": lambda **options: RepMLPNet(
        (1, 1), (8, 16), 5, partition_sizes=((4, 4), (2, 2)), sharesets=(2, 4), **options
    ),
    "light": lambda **options: RepMLPResNet(
        block="light", num_classes=5, widths=(16, 32, 64, 64), groups=(2, 2), **RESNET, **options
    ),
    "bottleneck": lambda **options: RepMLPResNet(
        block="bottleneck", num_classes=5, widths=(16, 64, 64, 64), groups=(2, 2), r=(2, 2), **RESNET, **options
    ),
    "FaceResNet": lambda **options: FaceResNet(
        block="bottleneck", stage_sizes=(1, 2), embedding_features=8, image_size=(16, 16), partition_size=(2, 2),
        widths=(16, 16), mid_widths=(8, 8), **options,
    ),
    "PSPNet": lambda **options: PSPNet(
        block="bottleneck", num_classes=5, stage_sizes=(1, 2, 2, 1), image_size=(33, 33), partition_size=(5, 5),
        widths=(16, 16, 32, 32), groups=(1, 1), reduction=(1, 1), conv_kernels=(1, 3), **options,
    ),
}  # fmt: skip
ABOUT = dict(mean=[0.5], std=[0.25], class_names=[str(digit) for digit in range(10)])


@pytest.fixture(scope="module")
def model():
    """A pure MLP with random weights and statistics, as it comes from training."""
    return randomised(abstract(NETS["PureMLP"]))


@pytest.fixture(scope="module")
def fused(model):
    return quick_jit(fuse_params)(model)


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]")
    return pytest.importorskip("onnx", reason="needs the extra [onnx]")


def run(path, images):
    import onnxruntime

    return onnxruntime.InferenceSession(path).run(["outputs"], {"images": np.asarray(images)})[0]


def operators(onnx, path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", NETS)
@pytest.mark.slow
def test_onnxruntime_gives_the_outputs_of_the_trained_net(onnx, name, fuse, tmp_path):
    net = randomised(abstract(NETS[name]))
    export_onnx(net, tmp_path / "net.onnx", fuse=fuse)
    images = random_input(net, 5, dtype=jnp.float32)
    assert_close(run(tmp_path / "net.onnx", images), forward(net, images), ROUNDING_F32)


@pytest.mark.parametrize(("opset", "version"), [(13, 7), (17, 8), (18, 8), (21, 10)])
def test_a_file_has_its_opset_and_the_oldest_format_for_it(onnx, fused, opset, version, tmp_path):
    export_onnx(fused, tmp_path / "net.onnx", opset=opset)
    file = onnx.load(tmp_path / "net.onnx")
    assert [(each.domain, each.version) for each in file.opset_import] == [("", opset)]
    assert file.ir_version == version


def test_metadata_and_shapes_say_what_goes_in_and_comes_out(onnx, fused, tmp_path):
    export_onnx(fused, tmp_path / "net.onnx", preprocessing=ABOUT)
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    about = session.get_modelmeta()
    held = about.custom_metadata_map
    assert json.loads(held["preprocessing"]) == ABOUT
    assert {name: json.loads(held[name]) for name in ABOUT} == ABOUT
    assert (held["repmlp_jax"], held["jax"], about.producer_name) == (__version__, jax.__version__, "repmlp_jax")
    ((images,), (outputs,)) = session.get_inputs(), session.get_outputs()
    export_onnx(fused, tmp_path / "net.onnx", preprocessing={"preprocessing": 3, "jax": "mine"}, overwrite=True)
    held = onnxruntime.InferenceSession(tmp_path / "net.onnx").get_modelmeta().custom_metadata_map
    assert (json.loads(held["preprocessing"]), held["jax"]) == ({"preprocessing": 3, "jax": "mine"}, jax.__version__)
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", ["N", 8, 8, 1])
    assert (outputs.name, outputs.type, outputs.shape) == ("outputs", "tensor(float)", ["N", 10])


@pytest.mark.parametrize("preprocessing", [ABOUT, None])
def test_pixels_are_normalised_in_the_graph(onnx, fused, preprocessing, tmp_path):
    export_onnx(fused, tmp_path / "net.onnx", preprocessing=preprocessing, preprocess=True)
    pixels = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), np.uint8)
    images = pixels.astype(np.float32) / 255
    images = (images - np.float32(0.5)) / np.float32(0.25) if preprocessing else images
    assert_close(run(tmp_path / "net.onnx", pixels), forward(fused, images), ROUNDING_F32)


def test_a_trained_net_is_written_as_it_is_only_if_asked(onnx, model, tmp_path, caplog):
    export_onnx(model, tmp_path / "trained.onnx", fuse=False)
    assert not caplog.messages
    export_onnx(model, tmp_path / "fused.onnx")
    assert caplog.messages == ["PureMLP is not fused: fusing it before the export"]
    trained, fused = (operators(onnx, tmp_path / f"{name}.onnx") for name in ("trained", "fused"))
    assert trained["Conv"] > fused["Conv"]
    images = random_input(model, 3, dtype=jnp.float32)
    assert_close(run(tmp_path / "trained.onnx", images), run(tmp_path / "fused.onnx", images), ROUNDING_F32)


def test_narrow_parameters_are_fused_in_float32(onnx, model, tmp_path):
    narrow = jax.tree.map(lambda array: array.astype(jnp.bfloat16) if array.dtype == jnp.float32 else array, model)
    export_onnx(narrow, tmp_path / "net.onnx")
    images = random_input(model, 3, dtype=jnp.float32)
    exact = forward(jax.tree.map(lambda array: array.astype(jnp.float32), narrow), images)
    assert_close(run(tmp_path / "net.onnx", images), exact, ROUNDING_F32)


class Net(nnx.Module):
    """A net of one function."""

    def __init__(self, call, input_shape=(9, 8, 4)):
        self.call = call
        self.input_shape = input_shape

    def __call__(self, x):
        return self.call(x)


class Convolutions(nnx.Module):
    """Convolutions with every way to give padding, with strides, dilation and groups, and transposed ones."""

    def __init__(self, rngs):
        self.input_shape = (9, 8, 4)
        options = dict(kernel_size=(3, 3), rngs=rngs)
        self.layers = nnx.List(
            [
                nnx.Conv(4, 4, padding=1, feature_group_count=2, **options),
                nnx.Conv(4, 4, padding=(2, 0), kernel_dilation=2, **options),
                nnx.Conv(4, 4, padding="SAME", strides=(2, 1), use_bias=False, **options),
                nnx.ConvTranspose(4, 6, strides=(2, 2), **options),
                nnx.ConvTranspose(6, 3, kernel_size=(2, 4), strides=(3, 2), padding="VALID", rngs=rngs),
                nnx.Conv(3, 1, padding=((0, 1), (2, 1)), **options),
            ]
        )

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x) if layer.bias is None else nnx.relu(layer(x))
        return x


def test_the_bias_of_a_convolution_is_its_third_input(onnx, tmp_path):
    net = jax.tree.map(lambda array: array + 0.01, Convolutions(nnx.Rngs(0)))
    export_onnx(net, tmp_path / "net.onnx")  # which compares the outputs
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    assert [len(node.input) for node in nodes if node.op_type == "Conv"] == [3, 3, 2, 3]
    assert [len(node.input) for node in nodes if node.op_type == "ConvTranspose"] == [3, 3]
    assert not [node for node in nodes if node.op_type == "Add"]
    # Only the first layer and the output have another layout than the convolutions.
    assert operators(onnx, tmp_path / "net.onnx")["Transpose"] == 2


def attend(x):
    """Attention over the rows, with a token in front, as einsums."""
    x = jnp.concatenate([jnp.broadcast_to(jnp.float32(0.5), (x.shape[0], 1, 8, 4)), x], axis=1)
    scores = jnp.einsum("nqhc,nkhc->nhqk", x, x, precision="highest") / 3
    y = jnp.einsum("nhqk,nkhc->nqhc", jax.nn.softmax(scores), x, precision="highest")
    return y[:, 0]


OPERATIONS = {
    "max pooling": lambda x: nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (0, 1))),
    "mean pooling": lambda x: lax.reduce_window(x, np.float32(0), lax.add, (1, 3, 3, 1), (1, 2, 2, 1), "SAME") / 9,
    "pooling of channels": lambda x: lax.reduce_window(x, -np.inf, lax.max, (1, 1, 1, 2), (1, 1, 1, 2), "VALID"),
    "min pooling": lambda x: nnx.min_pool(x, (2, 2), (2, 2)),
    "attention": attend,
    "activations": lambda x: sum(
        each(x)
        for each in (
            nnx.gelu, nnx.silu, nnx.relu6, nnx.hard_swish, nnx.leaky_relu, nnx.elu, nnx.tanh, nnx.sigmoid, jnp.square,
        )
    ),
    "a mean over the batch": lambda x: x * 0 + (x * 0).mean() + 1,
    "exact GELU": lambda x: nnx.gelu(x, approximate=False),
    "indices": lambda x: x[:, ::3, -1] + x[:, 2:5, 4] * x[:, 6:7, 0] + x[:, jnp.array([4, 1, 7]), 1],
    "parts": lambda x: jnp.concatenate([*jnp.split(x, [3], axis=3), jnp.flip(x, 1), jnp.tile(x, (1, 1, 1, 2))], -1),
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=3.0) ** 3,
    "cropping": lambda x: lax.pad(x, jnp.float32(1), ((0, 0, 0), (-1, 2, 0), (1, -3, 0), (0, 0, 0))),
    "norms": lambda x: (x - x.mean((1, 2), keepdims=True)) / jnp.sqrt(x.var(3, keepdims=True) + 1e-3),
    "resizing": lambda x: jax.image.resize(x, (x.shape[0], 12, 5, 4), "bilinear"),
    "choices": lambda x: jnp.where((x > 0.5) & ~(x == 0) | (x <= -1), x, jnp.clip(-x, -0.2, 0.3)),
    "a product with a constant for each image": lambda x: jnp.einsum(
        "nhwc,nhwc->nh", jnp.broadcast_to(jnp.float32(0.5), x.shape), x, precision="highest"
    ),
    "a transposed convolution with one number": lambda x: lax.conv_transpose(
        x, jnp.full((2, 2, 4, 3), 0.25, jnp.float32), (2, 2), ((0, 0), (1, 1))
    ),
    "an index several times": lambda x: x[:, jnp.full(3, 2)],
    "a token for each image": lambda x: jnp.concatenate(
        [jnp.tile(jnp.arange(4, dtype=jnp.float32)[None, None], (x.shape[0], 1, 1)), x.reshape(x.shape[0], -1, 4)], 1
    ),
    "places of the largest": lambda x: (x.argmax(3) + x.transpose(0, 3, 1, 2).argmin(2)[:, :1, :1]).astype(x.dtype),
    "sums so far": lambda x: lax.cumsum(x.swapaxes(1, 2), 2, reverse=True) + jnp.cumsum(x, 3).swapaxes(1, 2),
    "some and all": lambda x: ((x > 1).any(3) & (x < 2).swapaxes(1, 2).all(3).swapaxes(1, 2)).astype(x.dtype),
    "remainders of rounded numbers": lambda x: lax.rem(jnp.round(3 * x), jnp.float32(2)),
    "numbers that are finite": lambda x: jnp.isfinite(1 / jnp.round(x)).astype(x.dtype),
    "stacking": lambda x: jnp.stack([x.transpose(0, 2, 1, 3), jnp.full((x.shape[0], 8, 9, 4), 2, jnp.float32)], 2),
    "repeating": lambda x: jnp.broadcast_to(x[:, None, :, 0].mean(3), (x.shape[0], 3, 9)).reshape(x.shape[0], 27),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_common_operations_are_written(onnx, name, tmp_path):
    export_onnx(Net(OPERATIONS[name]), tmp_path / "net.onnx", opset=19)  # which compares the outputs
    assert (tmp_path / "net.onnx").is_file()


class Rematerialised(nnx.Module):
    """A net with a transformation of NNX, which refuses arrays that a function closes over."""

    def __init__(self):
        self.input_shape = (3, 3, 4)
        self.layer = nnx.Linear(4, 2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return nnx.remat(lambda layer, x: nnx.relu(layer(x)))(self.layer, x)


def test_a_net_with_transformations_of_nnx_is_written(onnx, tmp_path):
    export_onnx(Rematerialised(), tmp_path / "net.onnx")
    assert operators(onnx, tmp_path / "net.onnx") == {"MatMul": 1, "Add": 1, "Relu": 1, "Identity": 1}


def test_the_larger_of_integers_and_zero_is_written_at_the_oldest_opset(onnx, tmp_path):
    net = Net(lambda x: jnp.maximum((3 * x).astype(jnp.int32), 0).astype(x.dtype))
    export_onnx(net, tmp_path / "net.onnx", opset=13)  # which compares the outputs
    assert operators(onnx, tmp_path / "net.onnx")["Max"] == 1


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_become_onnx_is_refused_and_not_written(onnx, fused, tmp_path):
    newest = onnx.defs.onnx_opset_version()
    shape = jax.ShapeDtypeStruct
    for net, options, error, message in (
        (fused, dict(opset=12), ValueError, f"opset=12 must be from 13 to {newest}, which onnx .* knows"),
        (fused, dict(opset=newest + 1), ValueError, f"must be from 13 to {newest}"),
        (fused, dict(opset="17"), TypeError, "opset must be a whole number, not '17'"),
        (
            Net(lambda x: jax.pure_callback(np.sort, shape(x.shape, x.dtype), x)),
            {},
            ValueError,
            "this Net cannot be written as ONNX: it uses JAX's primitive pure_callback, and what can be written is abs",
        ),
        (
            Net(lambda x: x.sum()),
            {},
            ValueError,
            r"the model gives shape \(\) for 3 images, and .* one output for each",
        ),
        (Net(lambda x: x[:, :0]), {}, ValueError, r"the model gives shape \(3, 0, 8, 4\) for 3 images"),
        (Net(lambda x: x.swapaxes(0, 1)), {}, ValueError, r"the model gives shape \(9, 3, 8, 4\) for 3 images"),
        (
            Net(lambda x: lax.max(x > 0, x < 1).astype(x.dtype)),
            {},
            ValueError,
            "this Net cannot be written as ONNX: .*Max.* has unsupported type",
        ),
        (
            Net(lambda x: x[:, x[0, 0, 0, 0].astype(int)]),
            {},
            ValueError,
            "it uses JAX's primitive dynamic_slice, and what",
        ),
        (
            build_block(param_dtype=jnp.float32, dtype=jnp.bfloat16),
            {},
            TypeError,
            "gives bfloat16, and the ONNX file is in",
        ),
        (Net(lambda x: (x, x)), {}, TypeError, "the model gives a tuple, and not one array"),
        (Net(lambda x: x.reshape(int(x.shape[0]), -1)), {}, ValueError, "this Net cannot be written as ONNX: "),
        (
            Net(lambda x: (x.astype(jnp.bfloat16) * 2).astype(jnp.float32)),
            {},
            ValueError,
            "no form of this convert_element_type: numbers are of float32 or integers, and not of bfloat16",
        ),
    ):
        with pytest.raises(error, match=message):
            export_onnx(net, tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_too_large_for_a_file_is_refused(onnx, fused, tmp_path, monkeypatch):
    from repmlp_jax.deploy import onnx_graph

    monkeypatch.setattr(onnx_graph, "LARGEST", 1000)
    with pytest.raises(ValueError, match=r"its weights take [\d,]+ bytes, and an ONNX file holds less than 1,000"):
        export_onnx(fused, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_outputs_that_differ_are_not_written(onnx, fused, tmp_path, monkeypatch):
    from repmlp_jax.deploy import onnx_operators

    monkeypatch.setitem(onnx_operators.OPERATORS, "add", onnx_operators.OPERATORS["sub"])
    with pytest.raises(ValueError, match=r"the file differs from the model by .* limit is 1e-05 of these"):
        export_onnx(fused, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_onnx_without_its_extra(fused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'pip install "repmlp_jax\[onnx\]"'):
        export_onnx(fused, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command_line_writes_pixels_in_and_an_older_opset(onnx, model, fused, tmp_path):
    save_model(tmp_path / "model", model, preprocessing=ABOUT)
    out = tmp_path / "net.onnx"
    arguments = ["export", str(tmp_path / "model"), str(out), "--opset", "15", "--preprocess"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert refused.stderr == "error: --opset and --preprocess are of --format onnx\n"
    result = CliRunner().invoke(app, [*arguments, "--format", "onnx"])
    assert (result.exit_code, result.stdout) == (0, f"saved: {out}\n")
    assert onnx.load(out).opset_import[0].version == 15
    pixels = np.random.default_rng(1).integers(0, 256, (2, 8, 8, 1), np.uint8)
    images = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    assert_close(run(out, pixels), forward(fused, images), ROUNDING_F32)
