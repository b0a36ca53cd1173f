"""The command line, on small models."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, random_input, randomised
from cases import evaluate as forward
from flax import nnx
from safetensors.numpy import save_file
from tolerance import ROUNDING_F32, assert_close, assert_identical
from typer.testing import CliRunner

import repmlp_jax.deploy.timing
import repmlp_jax.storage.models
from repmlp_jax import (
    FaceResNet,
    PSPNet,
    PureMLP,
    RepMLPNet,
    __version__,
    extras,
    fuse_params,
    fuse_report,
    load_model,
    save_model,
    to_torch,
)
from repmlp_jax.cli import app, main
from repmlp_jax.data import digits
from repmlp_jax.deploy.predict import evaluate, predict
from repmlp_jax.deploy.timing import seconds_per_image
from repmlp_jax.fusing.fuse import fusable_modules
from repmlp_jax.interop.torch import deployed
from repmlp_jax.models.registry import MODELS
from repmlp_jax.storage.models import load

PREPROCESSING = dict(mean=digits.MEAN, std=digits.STD, class_names=digits.CLASS_NAMES)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def assert_refused(result, message):
    """Asserts one line on stderr and the exit code of bad input."""
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved model for the digits, of random weights."""
    arguments = dict(image_size=(8, 8), in_features=1, widths=(6,), partition_size=(4, 4), conv_kernels=(3,))
    model = randomised(abstract(PureMLP, **arguments))
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(path, model, preprocessing=PREPROCESSING)
    return path


@pytest.fixture
def tiny(monkeypatch):
    """A RepMLPNet under a name of its own, and its weights."""
    arguments = dict(stage_sizes=(1, 1), widths=(4, 8), partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2))
    monkeypatch.setitem(MODELS, "tiny", (RepMLPNet, arguments))
    return randomised(abstract(RepMLPNet, **arguments))


def test_version_shows_what_is_in_use():
    lines = [line.split() for line in run("--version").stdout.splitlines()]
    assert lines[:2] == [["repmlp_jax", __version__], ["jax", jax.__version__]]
    assert lines[-1] == ["devices", "8", "×", "cpu", "(cpu)"]


@pytest.mark.slow
def test_list_names_every_model():
    head, *lines = run("list").stdout.splitlines()
    assert head.split() == ["model", "class", "images", "parameters", "MACs"]
    assert [line.split()[0] for line in lines] == list(MODELS)


def test_list_counts_the_fused_models_of_a_pattern(tiny):
    _, line = run("list", "tin?").stdout.splitlines()
    report = fuse_report(tiny)
    assert line.split() == ["tiny", "RepMLPNet", "16×16×3", f"{report.parameters[1]:,}", f"{report.macs[1]:,}"]
    (row,) = json.loads(run("list", "tiny", "--json").stdout)
    expected = dict(images=[16, 16, 3], parameters=report.parameters[1], macs=report.macs[1])
    assert row == {"model": "tiny", "class": "RepMLPNet"} | expected
    assert_refused(run("list", "nothing*"), "no model matches 'nothing*'")


def test_summary_of_a_name_and_of_a_folder(folder, tiny):
    assert "official conversion" in run("summary", "tiny").stdout
    result = run("summary", folder)
    assert result.exit_code == 0
    assert "partition_perceptron.norm folded into fc3" in result.stdout
    report = json.loads(run("summary", folder, "--json").stdout)
    assert report == json.loads(fuse_report(load_model(folder)).to_json())
    assert_refused(run("summary", "RepMLPNet-T24"), "the nearest is 'RepMLPNet-T224'")


@pytest.mark.slow
def test_import_trained_and_deployed_weights(tiny, tmp_path):
    image = random_input(tiny, dtype=jnp.float32)
    for name, model in (("trained", tiny), ("deployed", deployed(tiny))):
        save_file(to_torch(model), tmp_path / f"{name}.safetensors")
        result = run("import", tmp_path / f"{name}.safetensors", tmp_path / name, "--model", "tiny")
        assert result.exit_code == 0, result.stderr
        assert ("the model is fused" in result.stdout) == (name == "deployed")
        assert_close(forward(load_model(tmp_path / name), image), forward(tiny, image), ROUNDING_F32)
        assert load(tmp_path / name).preprocessing["mean"] == [0.485, 0.456, 0.406]
    file = tmp_path / "trained.safetensors"
    assert_refused(run("import", file, tmp_path / "trained", "--model", "tiny"), "exists; --overwrite replaces it")
    assert_refused(run("import", file, tmp_path / "x", "--model", "pure_mlp"), "no official PyTorch layout")
    assert_refused(run("import", tmp_path / "no.pth", tmp_path / "x", "--model", "tiny"), "there is no file")
    few = run("import", file, tmp_path / "few", "--model", "tiny", "--num-classes", "3")
    assert_refused(few, 'head="skip" leaves it as it is')
    few = run("import", file, tmp_path / "few", "--model", "tiny", "--num-classes", "3", "--skip-head")
    assert few.exit_code == 0, few.stderr
    assert load_model(tmp_path / "few").head.linear.kernel.shape == (8, 3)


def test_import_names_five_problems_and_all_on_request(tiny, tmp_path):
    save_file({f"net.{key}": array for key, array in to_torch(tiny).items()}, tmp_path / "x.safetensors")
    command = ("import", tmp_path / "x.safetensors", tmp_path / "x", "--model", "tiny")
    assert_refused(run(*command), "The model's keys are there behind 'net.'")
    result = run(*command, "--all-problems")
    assert result.exit_code == 2
    problems = result.stderr.splitlines()[:-1]
    assert len(problems) > 50
    assert f"and {len(problems) - 5} more: " in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_import_takes_an_entry(tiny, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch (the extra [torch])")
    state_dict = {key: torch.tensor(array) for key, array in to_torch(tiny).items()}
    other = {key: tensor + 1 for key, tensor in state_dict.items()}
    torch.save({"state_dict": state_dict, "ema": other}, tmp_path / "x.pth")
    result = run("import", tmp_path / "x.pth", tmp_path / "x", "--model", "tiny", "--entry", "ema")
    assert result.exit_code == 0, result.stderr
    bias = load_model(tmp_path / "x").head.linear.bias
    assert_identical(bias[...], tiny.head.linear.bias[...] + 1)


def test_fuse(folder, tmp_path):
    result = run("fuse", folder, tmp_path / "fused")
    assert result.exit_code == 0
    assert "parameters" in result.stdout
    fused = load(tmp_path / "fused")
    assert fused.preprocessing["class_names"] == list(digits.CLASS_NAMES)
    assert_identical(fused.model, fuse_params(load_model(folder)))
    assert_refused(run("fuse", folder, tmp_path / "fused"), "exists; --overwrite replaces it")
    assert run("fuse", folder, tmp_path / "fused", "--overwrite").exit_code == 0
    assert_refused(run("fuse", tmp_path / "fused", tmp_path / "again"), "is fused already")
    assert_refused(run("fuse", tmp_path / "nothing", tmp_path / "again"), "there is no folder or file")


@pytest.mark.slow
def test_fuse_compares_the_outputs_unless_told_otherwise(folder, tmp_path, monkeypatch):
    compared = "outputs for a random image are equal, up to rounding"
    assert compared in run("fuse", folder, tmp_path / "fused").stdout
    assert compared not in run("fuse", folder, tmp_path / "other", "--no-check").stdout

    def wrong(model):
        return jax.tree.map(lambda array: array * 1.01, fuse_params(model))

    monkeypatch.setattr(repmlp_jax, "fuse_params", wrong)
    assert_refused(run("fuse", folder, tmp_path / "wrong"), "the fused PureMLP differs from the trained one by")
    assert not (tmp_path / "wrong").exists()
    assert run("fuse", folder, tmp_path / "wrong", "--no-check").exit_code == 0


def test_fuse_measures_both_models(folder, tmp_path, monkeypatch):
    def seconds(models):
        assert [bool(fusable_modules(model)) for model in models] == [True, False]
        return [0.003, 0.002]

    assert all(0 < found < 60 for found in seconds_per_image([load_model(folder)] * 2))
    monkeypatch.setattr(repmlp_jax.deploy.timing, "seconds_per_image", seconds)
    lines = run("fuse", folder, tmp_path / "fused", "--time").stdout.splitlines()
    assert lines[-2].split() == ["milliseconds", "an", "image", "3.00", "→", "2.00,", "1.50", "times", "as", "fast"]


@pytest.mark.slow
def test_a_path_may_start_at_the_home_folder_and_is_no_address(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(tmp_path)
    assert run("summary", "~/model").stdout == run("summary", folder).stdout
    assert run("plot", "report", "~/model", "~/report.svg").exit_code == 0
    assert run("fuse", "~/model", "~/fused").exit_code == 0
    assert load_model(folder.parent / "fused").input_shape == (8, 8, 1)
    assert_refused(run("fuse", "~/model", "~/fused"), "~/fused exists; --overwrite replaces it")
    for arguments in (
        ("fuse", "~/model", "gs://bucket"),
        ("plot", "identity", "gs://bucket/x.svg"),
        ("summary", "gs://x"),
    ):
        assert_refused(run(*arguments), "is an address, and only files of this machine are read and written")
    assert not list(tmp_path.iterdir())


def test_a_model_that_a_killed_save_was_replacing_is_found(folder, tmp_path):
    for part in ("new", "replaced"):
        shutil.copytree(folder, tmp_path / "model.partial.01234567.1.another-host" / part)
    assert run("summary", tmp_path / "model").stdout == run("summary", folder).stdout


def test_evaluate(folder):
    found = json.loads(run("evaluate", folder, "--dataset", "digits", "--json").stdout)
    images, labels = digits.load_digits()["test"]
    x = jnp.asarray((images / 255 - digits.MEAN[0]) / digits.STD[0], jnp.float32)
    logits = np.asarray(forward(load_model(folder), x), np.float64)
    assert found["accuracy"] == (logits.argmax(1) == labels).mean()
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    assert found["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert found["images"] == 360
    assert f"accuracy {found['accuracy']:.2%}" in run("evaluate", folder, "--dataset", "digits").stdout
    assert_refused(run("evaluate", folder, "--dataset", "digit"), "the nearest is 'digits'")


@pytest.mark.slow
def test_evaluate_streams_a_dataset_that_is_not_built_in(shared_datasets, tmp_path):
    model = PureMLP(image_size=(8, 8), widths=(2,), partition_size=(4, 4), conv_kernels=(3,), rngs=nnx.Rngs(0))
    save_model(tmp_path / "model", model)
    found = run("evaluate", tmp_path / "model", "--dataset", "cifar10:3.0.2", "--data-dir", shared_datasets, "--json")
    scores = json.loads(found.stdout)
    assert scores["images"] == 10_000
    assert 0.05 < scores["accuracy"] < 0.2
    message = "cars is not prepared in"
    assert_refused(run("evaluate", tmp_path / "model", "--dataset", "cars", "--data-dir", shared_datasets), message)


def test_evaluate_shows_the_top_5_accuracy_where_there_is_one(folder, monkeypatch):
    scores = dict(accuracy=0.5, loss=1.25, images=1000)
    for more, shown in ((dict(top_5_accuracy=0.75), "top 5 75.00%, "), ({}, "")):
        monkeypatch.setattr("repmlp_jax.deploy.predict.evaluate", lambda *_, found=scores | more: found)
        line = f"accuracy 50.00%, {shown}loss 1.2500 nats, 1,000 images\n"
        assert run("evaluate", folder, "--dataset", "imagenet2012").stdout == line


@pytest.mark.slow
def test_evaluate_refuses_what_does_not_fit(tmp_path):
    other = PureMLP(7, image_size=(8, 8), in_features=1, widths=(2,), partition_size=(4, 4), rngs=nnx.Rngs(0))
    save_model(tmp_path / "other", other)
    assert_refused(run("evaluate", tmp_path / "other", "--dataset", "digits"), "has 7 classes, digits 10")
    larger = PureMLP(image_size=(8, 4), in_features=1, widths=(2,), partition_size=(4, 4), rngs=nnx.Rngs(0))
    save_model(tmp_path / "larger", larger)
    message = "takes images of 8×4×1, those of digits are 8×8×1"
    assert_refused(run("evaluate", tmp_path / "larger", "--dataset", "digits"), message)


def test_predict(folder, tmp_path):
    images = digits.load_digits()["test"][0][:2]
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(paths, images, strict=True):
        cv2.imwrite(str(path), image)
    found = json.loads(run("predict", folder, *paths, "--json").stdout)
    x = jnp.asarray((images / 255 - digits.MEAN[0]) / digits.STD[0], jnp.float32)
    expected = np.asarray(jax.nn.softmax(forward(load_model(folder), x)))
    for path, probabilities in zip(paths, expected, strict=True):
        classes = found[str(path)]
        assert [name for name, _ in classes] == [str(number) for number in np.argsort(-probabilities)[:5]]
        assert_close([probability for _, probability in classes], np.sort(probabilities)[::-1][:5], ROUNDING_F32)
    shown = run("predict", folder, paths[0], "--top", "1").stdout.splitlines()
    assert shown[0] == str(paths[0])
    assert len(shown) == 2
    assert_refused(run("predict", folder, tmp_path / "no.png"), "there is no file")


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A working directory with a sound picture and files that are none."""
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("sound.png", digits.load_digits()["test"][0][0])
    Path("text.png").write_text("no picture")
    os.mkfifo("pipe.png")


@pytest.mark.usefixtures("pictures")
def test_pictures_that_cannot_be_read_are_reported_and_the_others_classified(folder):
    found = run("predict", folder, "text.png", "sound.png", "pipe.png", "no.png", "--json")
    assert found.exit_code == 2
    assert list(json.loads(found.stdout)) == ["sound.png"]
    first, second, third = found.stderr.splitlines()
    assert first.startswith("error: text.png is not a readable picture")
    assert second.startswith("error: pipe.png is not a picture")
    assert third == "error: there is no file no.png"
    shown = run("predict", folder, "sound.png", "text.png")
    assert shown.exit_code == 2
    assert shown.stdout.splitlines()[0] == "sound.png"


@pytest.mark.usefixtures("pictures")
def test_a_picture_given_twice_is_listed_twice(folder):
    cv2.imwrite("other.png", np.zeros((8, 8), np.uint8))
    (once, classes), *others = json.loads(run("predict", folder, "other.png", "--json").stdout).items()
    assert (once, others) == ("other.png", [])
    found = json.loads(run("predict", folder, "other.png", "sound.png", "other.png", "--json").stdout)
    assert [name for name, _ in found] == ["other.png", "sound.png", "other.png"]
    for _, again in (found[0], found[2]):
        assert again == [[name, pytest.approx(probability)] for name, probability in classes]
    shown = run("predict", folder, "other.png", "sound.png", "other.png", "--top", "1").stdout.splitlines()
    assert shown[::2] == ["other.png", "sound.png", "other.png"]


@pytest.mark.usefixtures("pictures", "unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(top=-2), ValueError, "top must be a positive integer, not -2"),
        (dict(top=2.0), TypeError, r"top must be a positive integer, not 2\.0"),
        (dict(pictures="sound.png"), TypeError, r"pictures must be a list of files, not one file: use \['sound.png'\]"),
        (dict(pictures=None), TypeError, "pictures=None must be a list of paths of files"),
        (dict(pictures=[3]), TypeError, r"pictures=\[3\] must be a list of paths of files"),
    ],
)
def test_predictions_that_are_refused(folder, arguments, error, message):
    with pytest.raises(error, match=message):
        predict(folder, **dict(pictures=["sound.png"]) | arguments)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(dataset_name=3), TypeError, "dataset_name must be a string, not 3"),
        (dict(batch_size=2.0), TypeError, r"batch_size must be a positive integer, not 2\.0"),
        (dict(batch_size=0), ValueError, "batch_size=0 must not be below 1"),
    ],
)
def test_evaluations_that_are_refused(folder, arguments, error, message):
    with pytest.raises(error, match=message):
        evaluate(folder, **dict(dataset_name="digits") | arguments)


STAGES = dict(image_size=(32, 32), widths=(4, 4), mid_widths=(4, 4), stage_sizes=(1, 1), stem_features=4)
TINY_PSPNET = dict(stage_sizes=(1, 1, 1, 1), widths=(4, 4, 4, 4), bins=(1,))


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda rngs: FaceResNet(embedding_features=6, block="base", **STAGES, rngs=rngs), "(6,)"),
        (
            lambda rngs: PSPNet(
                3,
                block="base",
                image_size=(17, 17),
                stage_sizes=(1, 1, 1, 1),
                widths=(4, 4, 4, 4),
                bins=(1,),
                rngs=rngs,
            ),
            "(17, 17, 3)",
        ),
    ],
    ids=["embeddings", "a class for every pixel"],
)
def test_predict_takes_classifiers_alone(make, shape, tmp_path):
    save_model(tmp_path / "model", randomised(abstract(make)))
    message = f"whose output for an image, of shape {shape}, is not a number for each class: it takes a classifier"
    assert_refused(run("predict", tmp_path / "model", "sound.png"), message)


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", ["list", "summary", "fuse", "predict", "--help"])
def test_what_the_output_cannot_hold_is_printed_as_escapes(command, encoding, folder, tmp_path, monkeypatch):
    arguments = {
        "list": ["pure_mlp"],
        "summary": [folder],
        "fuse": [folder, tmp_path / "fused"],
        "predict": [folder, tmp_path / os.fsdecode(b"caf\xe9.png")],
    }
    cv2.imwrite(str(tmp_path / "sound.png"), np.zeros((8, 8), np.uint8))
    (tmp_path / "sound.png").rename(tmp_path / os.fsdecode(b"caf\xe9.png"))
    monkeypatch.setattr(sys, "argv", ["repmlp-jax", command, *map(str, arguments.get(command, []))])
    output = io.TextIOWrapper(io.BytesIO(), encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = output.buffer.getvalue().decode(encoding)
    assert ("\\u2192" in printed) == (command in ("summary", "fuse"))
    assert ("caf\\udce9.png" in printed) == (command == "predict")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (KeyError("conv1"), "error: KeyError: 'conv1' (REPMLP_JAX_DEBUG=1 shows where)\n"),
        (RecursionError("too deep"), "error: RecursionError: too deep (REPMLP_JAX_DEBUG=1 shows where)\n"),
        (MemoryError(), "error: MemoryError (REPMLP_JAX_DEBUG=1 shows where)\n"),
        (ValueError("two\n  lines"), "error: two lines\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_error_of_a_bad_file_is_a_traceback(error, message, folder, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(repmlp_jax.storage.models, "load", fail)
    result = run("fuse", folder, tmp_path / "out")
    assert (result.exit_code, result.stderr) == (2, message)
    monkeypatch.setenv("REPMLP_JAX_DEBUG", "1")
    assert run("fuse", folder, tmp_path / "out").exception is error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fuse", "nothing", "out"], "there is no folder or file"),
        (["fuse", "nothing"], "'out'"),
        (["summery"], "No such command 'summery'"),
        (["predict", "model", "a.png", "--top", "many"], "Invalid value for '--top'"),
    ],
)
def test_a_program_of_its_own_ends_with_one_line_and_code_2(arguments, message, tmp_path):
    command = [sys.executable, "-m", "repmlp_jax", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["list", "summary", "import", "fuse", "evaluate", "predict"])
def test_every_command_shows_an_example(command):
    assert f"Example: repmlp-jax {command}" in " ".join(run(command, "--help").stdout.split())


@pytest.mark.parametrize("group", [[], ["plot"]], ids=["all", "plot"])
def test_without_a_command_the_help_names_all_in_full(group, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["repmlp-jax", *group])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("Usage: ")
    assert "Commands:" in said
    assert "..." not in said.partition("Commands:")[2]


def test_info_names_versions_devices_and_what_the_extras_are_for(monkeypatch):
    monkeypatch.setattr(extras, "missing_from", lambda extra: ["onnx"] if extra == "onnx" else [])
    lines = [" ".join(line.split()) for line in run("info").stdout.splitlines()]
    assert f"jax {jax.__version__}" in lines
    assert "devices 8 × cpu (cpu)" in lines
    assert '[onnx] not installed: pip install "repmlp_jax[onnx]", for ONNX files and int8' in lines
    assert lines[-1] == "[torch] installed, for weights in .pth, .pt, .tar and .bin files, not in .safetensors"
