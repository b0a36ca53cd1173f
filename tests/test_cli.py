"""The command line, on small models."""

import json
import shutil
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, randomised
from cases import evaluate as forward
from flax import nnx
from safetensors.numpy import save_file
from tolerance import ROUNDING_F32, assert_close, assert_identical
from typer.testing import CliRunner

from repmlp_jax import PureMLP, RepMLPNet, __version__, fuse_params, load_model, save_model, to_torch
from repmlp_jax.cli import app
from repmlp_jax.data import digits
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


def test_list_names_every_model():
    result = run("list")
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(MODELS)
    assert "RepMLPNet-T224" in result.stdout


def test_summary_of_a_name_and_of_a_folder(folder, tiny):
    assert "official conversion" in run("summary", "tiny").stdout
    result = run("summary", folder)
    assert result.exit_code == 0
    assert "partition_perceptron.norm folded into fc3" in result.stdout
    assert_refused(run("summary", "RepMLPNet-T24"), "the nearest is 'RepMLPNet-T224'")


@pytest.mark.slow
def test_import_trained_and_deployed_weights(tiny, tmp_path):
    image = jax.random.normal(jax.random.key(0), (2, *tiny.input_shape), jnp.float32)
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
    assert_refused(run("fuse", tmp_path / "nothing", tmp_path / "again"), "holds no model.json")


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
    (tmp_path / "text.png").write_text("no picture")
    assert_refused(run("predict", folder, paths[0], tmp_path / "text.png"), "text.png is no picture")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fuse", "nothing", "out"], "nothing holds no model.json: it is no folder that save_model wrote"),
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
