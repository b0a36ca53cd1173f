"""Exported models: the same outputs as in process, in a process without this library, too."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, build_block, quick_jit, random_input, randomised
from cases import evaluate as forward
from flax import nnx
from safetensors.numpy import load_file
from tolerance import ROUNDING_BF16, ROUNDING_F32, assert_close, assert_identical
from typer.testing import CliRunner

from repmlp_jax import (
    PureMLP,
    RepMLPNet,
    RepMLPResNet,
    export_model,
    export_onnx,
    export_torch,
    from_torch,
    fuse_params,
    load_exported,
    load_torch_file,
    save_model,
    to_torch,
)
from repmlp_jax.cli import app
from repmlp_jax.data import digits

DIGITS = dict(image_size=(8, 8), in_features=1, widths=(16, 32), partition_size=(4, 4), conv_kernels=(1, 3))
RESNET = dict(stage_sizes=(1, 2, 1, 1), num_classes=5, image_size=(32, 32), partition_size=(2, 2), groups=(2, 2))
NETS = {
    "PureMLP": lambda **options: PureMLP(**DIGITS, **options),
    "RepMLPNet": lambda **options: RepMLPNet(
        (1, 1), (8, 16), 5, partition_sizes=((4, 4), (2, 2)), sharesets=(2, 4), **options
    ),
    "RepMLPResNet": lambda **options: RepMLPResNet(block="light", widths=(16, 32, 64, 64), **RESNET, **options),
}
FIVE = dict(mean=[0.5] * 3, std=[0.25] * 3, class_names=["ant", "bee", "cat", "dog", "eel"])
PREPROCESSING = {
    "PureMLP": dict(mean=list(digits.MEAN), std=list(digits.STD), class_names=list(digits.CLASS_NAMES)),
    "RepMLPNet": FIVE,
    "RepMLPResNet": FIVE,
}
DOCS = Path(__file__).parents[2] / "docs"
HAS_ONNX = importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra [onnx]")
every_net = pytest.mark.parametrize("name", NETS)
every_batch = pytest.mark.parametrize("batch", [1, 5])


def build(name, **options):
    """A net with random weights and statistics, as it comes from training."""
    return randomised(abstract(NETS[name], **options))


@pytest.fixture(scope="module")
def models():
    return {name: build(name) for name in NETS}


@pytest.fixture(scope="module")
def expected(models):
    """Of every net five images, and the logits that it gives as it was trained."""
    images = {name: random_input(model, 5, dtype=jnp.float32) for name, model in models.items()}
    return {name: (images[name], forward(model, images[name])) for name, model in models.items()}


@pytest.fixture(scope="module")
def fused(models):
    return {name: quick_jit(fuse_params)(model) for name, model in models.items()}


def written(write, models, folder):
    for name, model in models.items():
        write(model, folder / name, preprocessing=PREPROCESSING[name])
    return folder


@pytest.fixture(scope="module")
def files(fused, tmp_path_factory):
    """Every net, exported."""
    return written(export_model, fused, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def small(files):
    return load_exported(files / "PureMLP")


@every_batch
@every_net
def test_an_exported_net_gives_the_logits_of_the_trained_one(expected, files, name, batch):
    images, logits = (array[:batch] for array in expected[name])
    found = load_exported(files / name)(images)
    assert found.dtype == jnp.float32
    assert_close(found, logits, ROUNDING_F32)


def test_a_file_holds_the_forms_of_every_platform(files):
    with zipfile.ZipFile(files / "RepMLPResNet") as file:
        program = jax.export.deserialize(bytearray(file.read("program.bin")))
    assert program.platforms == ("cpu", "cuda", "tpu")
    module = program.mlir_module()
    # The stem's pooling: windows on accelerators; on the CPU maxima of every second row and column, which JAX gathers
    # where the batch is of any size.
    assert "stablehlo.reduce_window" in module
    assert "stablehlo.dynamic_gather" in module
    assert "stablehlo.case" in module


@pytest.mark.parametrize("name", ["pure_mlp", "repmlpnet"])
@pytest.mark.parametrize("version", ["0.10.2", "0.12.0.1"])
def test_files_of_an_older_and_of_a_newer_jax_are_read(version, name, tmp_path):
    with zipfile.ZipFile(Path(__file__).with_name("exported_models.zip")) as archive:
        archive.extractall(tmp_path)
    exported = load_exported(tmp_path / version / f"{name}.zip")
    images = np.linspace(-1, 1, 2 * np.prod(exported.input_shape), dtype=np.float32).reshape(2, *exported.input_shape)
    assert_close(exported(images), json.loads((tmp_path / version / "logits.json").read_text())[name], ROUNDING_F32)


def test_it_runs_in_a_process_that_has_jax_alone(expected, files, tmp_path):
    for package in ("jax", "jaxlib", "ml_dtypes", "numpy", "opt_einsum", "scipy", "flatbuffers"):
        installed = Path(importlib.util.find_spec(package).origin).parent
        for folder in (installed, installed.with_name(f"{package}.libs")):
            if folder.is_dir():
                (tmp_path / folder.name).symlink_to(folder)
    images, logits = expected["PureMLP"]
    shutil.copy(files / "PureMLP", tmp_path / "digits.zip")
    np.save(tmp_path / "images.npy", images)
    block = block_of_the_docs("import zipfile")
    program = f'{block}\nimport numpy\nnumpy.save("logits.npy", forward(weights, numpy.load("images.npy")))'
    # Without the site module there are no packages but those in the working directory.
    subprocess.run([sys.executable, "-S", "-c", program], cwd=tmp_path, check=True)
    assert_close(np.load(tmp_path / "logits.npy"), logits, ROUNDING_F32)


def test_preprocessing_and_class_names_travel_along(fused, small, tmp_path):
    assert small.input_shape == (8, 8, 1)
    assert small.preprocessing == PREPROCESSING["PureMLP"]
    assert small.class_names == list(digits.CLASS_NAMES)
    export_model(fused["PureMLP"], tmp_path / "parent" / "without")
    without = load_exported(tmp_path / "parent" / "without")
    assert without.preprocessing == {}
    assert without.class_names is None


def test_a_model_that_is_not_fused_is_fused_and_the_log_says_so(models, fused, expected, tmp_path, caplog):
    model = models["PureMLP"]
    before = nnx.clone(model)
    export_model(model, tmp_path / "model")
    assert caplog.messages == ["PureMLP is not fused: fusing it before the export"]
    assert_identical(model, before)
    assert not [name for name in zipfile.ZipFile(tmp_path / "model").namelist() if "norm." in name]
    images, logits = expected["PureMLP"]
    assert_close(load_exported(tmp_path / "model")(images), logits, ROUNDING_F32)
    export_model(fused["PureMLP"], tmp_path / "fused")
    assert len(caplog.messages) == 1


class OfAUser(nnx.Module):
    """A block of this library between what it does not know, in training mode."""

    def __init__(self, rngs):
        self.input_shape = (6, 6, 4)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.block = build_block(param_dtype=jnp.float32)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.block(self.norm(x)))


@pytest.mark.parametrize(
    ("make", "dtype", "tolerance"),
    [
        (lambda: OfAUser(nnx.Rngs(0)), jnp.float32, ROUNDING_F32),
        (lambda: build_block("padded", param_dtype=jnp.float32), jnp.float32, ROUNDING_F32),
        (lambda: build_block(param_dtype=jnp.bfloat16, dtype=jnp.float32), jnp.float32, ROUNDING_BF16),
        (lambda: build_block(param_dtype=jnp.float32, dtype=jnp.bfloat16), jnp.bfloat16, ROUNDING_BF16),
    ],
    ids=["a module of a user's", "a block", "parameters in bfloat16", "computes in bfloat16"],
)
def test_what_else_can_be_exported(make, dtype, tolerance, tmp_path):
    model = make()
    export_model(model, tmp_path / "model")
    images = random_input(model, 3, dtype=jnp.float32)
    outputs = load_exported(tmp_path / "model")(images)
    assert outputs.dtype == dtype
    assert_close(outputs, forward(model, images), tolerance)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 8, 8, 1), np.uint8), TypeError, "takes images as an array of float32, normalised, not uint8"),
        (np.zeros((2, 8, 8, 1)), TypeError, "not float64"),
        ([[0.0]], TypeError, "not list"),
        (np.zeros((2, 9, 8, 1), np.float32), ValueError, r"of shape \(N, 8, 8, 1\), .* called with \(2, 9, 8, 1\)"),
        (np.zeros((8, 8, 1), np.float32), ValueError, r"called with \(8, 8, 1\)"),
        (np.zeros((0, 8, 8, 1), np.float32), ValueError, r"N at least 1, .* called with \(0, 8, 8, 1\)"),
    ],
    ids=["uint8", "float64", "a list", "another size", "one image", "no image"],
)
def test_images_that_do_not_fit(small, images, error, message):
    with pytest.raises(error, match=message):
        small(images)


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_exported(fused, tmp_path):
    for model, message in (
        (jnp.zeros(3), "export needs an nnx.Module, not ArrayImpl"),
        (nnx.Linear(2, 2, rngs=nnx.Rngs(0)), "Linear has no input_shape: set it to the"),
        (build("PureMLP", param_dtype=jnp.float64), "arrays hold float64, .* build the model with param_dtype"),
        (abstract(NETS["PureMLP"]), "this PureMLP is abstract: it has shapes, but no weights"),
        (Unknown((4, 4)), r"the input_shape of this Unknown is \(4, 4\): set it to the \(height, width, channels\)"),
        (Unknown(8), "the input_shape of this Unknown is 8: set it to"),
    ):
        with pytest.raises(TypeError, match=message):
            export_model(model, tmp_path / "model")
    with pytest.raises(TypeError, match="source, a object, cannot be saved as JSON"):
        export_model(fused["PureMLP"], tmp_path / "model", preprocessing={"source": object()})
    assert not list(tmp_path.iterdir())


def test_an_existing_file_stays(fused, files, tmp_path, monkeypatch):
    model = fused["PureMLP"]
    path = shutil.copy(files / "PureMLP", tmp_path / "model")
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match="model exists; pass overwrite=True to replace it"):
        export_model(model, path)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        export_model(model, tmp_path, overwrite=True)

    def disk_full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", disk_full)
        with pytest.raises(OSError, match="no space left"):
            export_model(model, path, overwrite=True)
    assert path.read_bytes() == content
    export_model(model, path, overwrite=True)
    assert path.read_bytes() != content  # its preprocessing is gone
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_files_that_are_no_export(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_exported(tmp_path / "nothing")
    content = (files / "PureMLP").read_bytes()
    for broken in (b"", b"no zip", content[: len(content) // 2], content[:-1]):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(ValueError, match="broken is damaged, or no file that export_model wrote"):
            load_exported(tmp_path / "broken")
    with zipfile.ZipFile(tmp_path / "other", "w") as file:
        file.writestr("notes.txt", "something else")
    with pytest.raises(ValueError, match=r"no file that export_model wrote: .*model\.json"):
        load_exported(tmp_path / "other")


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_flipped_bit_is_noticed(files, tmp_path, place):
    content = bytearray((files / "PureMLP").read_bytes())
    content[int(place * len(content))] ^= 1 << 3
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ValueError, match="model is damaged"):
        load_exported(tmp_path / "model")


def rewritten(path, to, **changes):
    """A copy of an exported model with another description, or with another program."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "model.json":
                content = json.dumps(json.loads(content) | changes)
            new.writestr(name, changes.get(name, content))


def test_formats_and_programs_that_this_version_cannot_read(files, tmp_path):
    rewritten(files / "PureMLP", tmp_path / "newer", format=2)
    with pytest.raises(ValueError, match="newer is of format 2; this version reads format 1"):
        load_exported(tmp_path / "newer")
    other = {"program.bin": "from another time"}
    rewritten(files / "PureMLP", tmp_path / "later", **other, versions=dict(jax="99.0"))
    with pytest.raises(ValueError, match=f"exported by jax 99.0, and jax {jax.__version__} cannot read it: export it"):
        load_exported(tmp_path / "later")
    rewritten(files / "PureMLP", tmp_path / "other", **other)
    with pytest.raises(ValueError, match=r"other is damaged: its program.bin is not a program of JAX \(.+\)"):
        load_exported(tmp_path / "other")


def test_what_a_description_lacks_is_named(files, tmp_path):
    rewritten(files / "PureMLP", tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model", "a") as file, pytest.warns(UserWarning, match="Duplicate name"):
        file.writestr("model.json", json.dumps({"format": 1, "weights": [], "versions": {}}))
    with pytest.raises(ValueError, match=r"export_model wrote: its model.json lacks input_shape, preprocessing"):
        load_exported(tmp_path / "model")


def test_a_program_without_flatbuffers_is_not_called_damaged(files, monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("No module named 'flatbuffers'")

    monkeypatch.setattr(jax.export, "deserialize", missing)
    with pytest.raises(ImportError, match="flatbuffers"):
        load_exported(files / "PureMLP")


def test_a_compressed_entry_is_refused_before_it_is_read(files, tmp_path):
    with zipfile.ZipFile(files / "PureMLP") as old, zipfile.ZipFile(tmp_path / "bomb", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name), zipfile.ZIP_DEFLATED if name == "program.bin" else zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match=r"bomb is damaged, .*program.bin in it is compressed"):
        load_exported(tmp_path / "bomb")


@pytest.mark.usefixtures("unchecked_types")
def test_arguments_of_another_type_are_named(fused, tmp_path):
    for call in (load_exported, lambda path: export_model(fused["PureMLP"], path)):
        with pytest.raises(TypeError, match="path must be a path, not a int"):
            call(3)
    for model, message in (
        (None, "export needs an nnx.Module, not NoneType"),
        (abstract(NETS["RepMLPNet"]), "this RepMLPNet is abstract: it has shapes, but no weights"),
    ):
        with pytest.raises(TypeError, match=message):
            export_torch(model, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match=f"{path.name} is not a file that export_model wrote: it is a folder"):
            load_exported(path)


@pytest.mark.parametrize("write", [export_model, pytest.param(export_onnx, marks=needs_onnx), export_torch])
def test_weights_that_are_not_finite_are_not_exported(write, models, tmp_path):
    model = nnx.clone(models["RepMLPNet"])
    model.head.linear.bias[...] = model.head.linear.bias[...].at[2].set(np.nan)
    message = r"the RepMLPNet to export holds values that are NaN or infinite: head\.\S*bias \(1 of 5\)"
    with pytest.raises(ValueError, match=message):
        write(model, tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("write", [export_model, pytest.param(export_onnx, marks=needs_onnx)])
def test_preprocessing_that_cannot_be_written(write, fused, tmp_path):
    for preprocessing in ([0.5], 0):
        with pytest.raises(TypeError, match="preprocessing must be a dictionary, not a"):
            write(fused["PureMLP"], tmp_path / "model", preprocessing=preprocessing)
    assert not list(tmp_path.iterdir())


class Unknown(nnx.Module):
    """What can be exported to JAX only on the platform it runs on."""

    def __init__(self, input_shape=(4, 4, 1)):
        self.input_shape = input_shape

    def __call__(self, x):
        return jax.pure_callback(np.sort, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def test_weights_for_pytorch_come_back_bit_for_bit(models, fused, tmp_path):
    model = models["RepMLPNet"]
    export_torch(model, tmp_path / "net.safetensors")
    assert_identical(from_torch(model, load_torch_file(tmp_path / "net.safetensors")), model)
    with pytest.raises(FileExistsError, match="pass overwrite=True to replace it"):
        export_torch(model, tmp_path / "net.safetensors")
    for other in (models["PureMLP"], fused["RepMLPNet"]):
        with pytest.raises(TypeError, match="has no official PyTorch layout"):
            export_torch(other, tmp_path / "other.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["net.safetensors"]


def run(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def saved(models, tmp_path_factory):
    """A saved model, as the command line takes it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder, models["RepMLPNet"], preprocessing=FIVE)
    return folder


def test_the_command_line_exports_to_jax(expected, saved, tmp_path, caplog):
    out = tmp_path / "model.zip"
    result = run(saved, out)
    assert (result.exit_code, result.stdout) == (0, f"saved: {out}\n")
    assert caplog.messages == ["RepMLPNet is not fused: fusing it before the export"]
    exported = load_exported(out)
    assert exported.class_names == FIVE["class_names"]
    images, logits = expected["RepMLPNet"]
    assert_close(exported(images), logits, ROUNDING_F32)
    refused = run(saved, out)
    assert (refused.exit_code, refused.stderr) == (2, f"error: {out} exists; --overwrite replaces it\n")
    assert "'jax', 'onnx', 'torch'" in run(saved, out, "--format", "tf").stderr


def test_the_command_line_exports_to_torch(models, saved, tmp_path):
    out = tmp_path / "net.safetensors"
    assert run(saved, out, "--format", "torch").exit_code == 0
    assert run(saved, out, "--format", "torch", "--overwrite").exit_code == 0
    found, expected = load_file(out), to_torch(models["RepMLPNet"])
    assert found.keys() == expected.keys()
    assert all(found[key].tobytes() == expected[key].tobytes() for key in expected)


def test_the_command_line_shows_an_example():
    assert "Example: repmlp-jax export fused fused.onnx --format onnx" in " ".join(run("--help").stdout.split())


def block_of_the_docs(text, page="export.md"):
    """The one block of code on a page that has this text."""
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    (block,) = (block for block in blocks if text in block)
    return block


@pytest.fixture
def service(fused, tmp_path, monkeypatch):
    """A client of the service in the docs."""
    pytest.importorskip("fastapi", reason="needs FastAPI (the extra [docs])")
    from fastapi.testclient import TestClient

    export_model(fused["PureMLP"], tmp_path / "digits.zip", preprocessing=PREPROCESSING["PureMLP"])
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("service")
    exec(block_of_the_docs("FastAPI()", "how_to/deploy.md"), vars(module))
    monkeypatch.setitem(sys.modules, "service", module)
    return TestClient(module.app)


def test_the_service_in_the_docs_answers(service, small):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    answer = service.post("/", content=cv2.imencode(".png", pixels)[1].tobytes(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200
    assert list(answer.json()) == list(digits.CLASS_NAMES)
    images = (pixels[None] / 255 - digits.MEAN) / digits.STD
    assert_close(list(answer.json().values()), jax.nn.softmax(small(images.astype(np.float32)))[0], ROUNDING_F32)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no picture", "10 bytes are not a complete picture"), (cv2.imencode(".png", np.eye(9))[1][:60], "60 bytes")],
)
def test_the_service_in_the_docs_refuses_what_is_no_picture(service, content, message):
    answer = service.post("/", content=bytes(content), headers={"Content-Type": "image/png"})
    assert answer.status_code == 400
    assert message in answer.json()["detail"]
