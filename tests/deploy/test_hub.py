"""Models on the hub: pushed to and read from what stands in for it, by the hub's own client."""

import importlib
import json
import re
import socket
import sys
import threading

import jax.numpy as jnp
import pytest
from cases import abstract, randomised
from flax import nnx
from stand_in_hub import StandInHub
from tolerance import assert_identical
from typer.testing import CliRunner

from repmlp_jax import create_model, data_configuration, fuse_params, load_model, save_model
from repmlp_jax.cli import app
from repmlp_jax.deploy.push import push
from repmlp_jax.training import default_config

SIZES = dict(image_size=(8, 8), in_features=3, widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3), num_classes=2)
ABOUT = dict(mean=[0.5] * 3, std=[0.25] * 3, class_names=["cat", "dog"])


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Makes the client take another address for the hub; its cache is empty at first."""
    pytest.importorskip("huggingface_hub")
    constants = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")

    def ask_at(endpoint):
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return ask_at


@pytest.fixture
def hub(ask):
    """What stands in for the hub, which the client asks."""
    server = StandInHub()
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    ask(server.endpoint)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def net():
    return randomised(abstract(create_model, "pure_mlp", **SIZES))


@pytest.fixture
def run(net, tmp_path):
    """The folder of a run."""
    config = default_config()
    config.update(dict(dataset="folder", data_dir="/home/me/secret", learning_rate=0.07, init_from="/home/me/first"))
    config.model_arguments = SIZES
    folder = tmp_path / "run"
    save_model(folder / "model", net, preprocessing=ABOUT)
    save_model(folder / "fused", fuse_params(net), preprocessing=ABOUT)
    row = dict(loss=0.25, accuracy=0.875, parameters=1234, macs=5678, images_per_second=9.0)
    (folder / "results.json").write_text(json.dumps(dict(trained=row, fused=row | dict(parameters=123), baselines={})))
    (folder / "config.json").write_text(config.to_json())
    return folder


def test_a_run_is_pushed_and_read_wherever_a_model_is_taken(hub, run, net):
    assert push(run, "me/pets") == f"{hub.endpoint}/me/pets"
    files = hub.repositories["me/pets"]
    assert sorted(files) == ["README.md", "model.json", "weights.safetensors"]
    assert files["weights.safetensors"] == (run / "model" / "weights.safetensors").read_bytes()
    expected = load_model(run / "model")
    for address in ("hf://me/pets", "hf://me/pets@main", f"hf://me/pets@{hub.commit('me/pets')}"):
        assert_identical(load_model(address), expected)
    assert_identical(create_model("pure_mlp", **SIZES, pretrained="hf://me/pets", rngs=nnx.Rngs(0)), net)
    assert data_configuration("hf://me/pets").mean == (0.5, 0.5, 0.5)


@pytest.mark.slow
def test_the_commands_take_it(hub, run, tmp_path):
    def done(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    result = done("push", run / "fused", "hf://me/fused", "--private")
    assert result.stdout == f"pushed: {hub.endpoint}/me/fused\n"
    assert hub.private == {"me/fused"}
    assert "fuse_params" not in hub.repositories["me/fused"]["README.md"].decode()
    done("push", run, "me/pets")
    assert done("summary", "hf://me/pets").stdout == done("summary", run / "model").stdout
    result = done("fuse", "hf://me/pets", tmp_path / "out", "--no-check")
    assert result.exit_code == 0, result.stderr
    assert_identical(load_model(tmp_path / "out"), load_model(run / "fused"))
    result = done("fuse", run / "model", "hf://me/out")
    assert (result.exit_code, "`repmlp-jax push` writes there" in result.stderr) == (2, True)


def test_the_card_says_what_the_model_is_and_nothing_of_this_machine(hub, run, net, tmp_path):
    push(run, "me/pets")
    card = hub.repositories["me/pets"]["README.md"].decode()
    assert card.startswith("---\nlibrary_name: repmlp_jax\npipeline_tag: image-classification\ntags: [")
    assert "a PureMLP of [RepMLP](https://arxiv.org/abs/2105.01883), trained on pictures in folders: " in card
    assert "images of 8×8×3. It has 2 classes: cat, dog." in card
    assert "| trained | 0.2500 | 0.8750 | 1,234 | 5,678 |" in card
    assert "- `learning_rate = 0.07`" in card
    assert "- `init_from = 'first'`" in card
    assert "/home" not in card
    assert str(tmp_path) not in card
    assert "flip" not in card
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    exec(code, namespace := dict(images=jnp.ones((1, 8, 8, 3), jnp.float32)))
    assert namespace["outputs"].shape == (1, 2)
    save_model(tmp_path / "alone", net)
    push(tmp_path / "alone", "me/alone")
    card = hub.repositories["me/alone"]["README.md"].decode()
    assert "Scores" not in card
    assert "Recipe" not in card


def test_an_average_of_the_weights_is_of_its_run(hub, run):
    (run / "fused").rename(run / "ema_fused")
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | dict(ema_fused=dict(loss=0.125, accuracy=1.0))))
    push(run / "ema_fused", "me/average")
    card = hub.repositories["me/average"]["README.md"].decode()
    assert "| ema_fused | 0.1250 | 1.0000 | 123 | 5,678 |" in card
    assert "- `learning_rate = 0.07`" in card


def test_what_is_there_is_replaced_only_on_request(hub, run):
    hub.repositories["me/pets"] = {"README.md": b"by hand", ".gitattributes": b"", "data.txt": b"kept"}
    with pytest.raises(FileExistsError, match=r"me/pets holds README.md already; --overwrite replaces them"):
        push(run, "me/pets")
    with pytest.raises(ValueError, match="me/pets is public: leave out --private"):
        push(run, "me/pets", private=True, overwrite=True)
    assert hub.repositories["me/pets"]["README.md"] == b"by hand"
    push(run, "me/pets", overwrite=True)
    assert b"library_name" in hub.repositories["me/pets"]["README.md"]
    assert hub.repositories["me/pets"]["data.txt"] == b"kept"


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "hf://me/none",
            FileNotFoundError,
            "there is no http://localhost:.*/me/none, or it is private; `hf auth",
        ),
        ("hf://me/other", FileNotFoundError, "me/other does not hold a model that `repmlp-jax push` wrote"),
        ("hf://me/other@v2", FileNotFoundError, "me/other has no such revision"),
        ("hf://me/strange", ValueError, "is damaged: model.json cannot be read"),
        (
            "hf://pets",
            ValueError,
            "hf://pets is not a model of the hub: it must be hf://OWNER/NAME or hf://OWNER/NAME@R",
        ),
        ("hf://me/pets/model", ValueError, "must be hf://OWNER/NAME"),
    ],
)
def test_what_is_no_model_of_ours_is_one_error(hub, address, error, message):
    hub.repositories["me/other"] = {"config.json": b"{}", "model.safetensors": b""}
    hub.repositories["me/strange"] = {"model.json": b"{}", "weights.safetensors": b""}
    with pytest.raises(error, match=message):
        load_model(address)


def test_a_hub_that_does_not_answer_is_one_error_and_what_was_read_before_still_is(hub, run, ask):
    push(run, "me/pets")
    expected = load_model("hf://me/pets")

    def check():
        assert_identical(load_model("hf://me/pets"), expected)
        with pytest.raises(ConnectionError, match=r"http://localhost:\d+/me/others cannot be reached: "):
            load_model("hf://me/others")
        with pytest.raises(ConnectionError, match=r"http://localhost:\d+/me/others cannot be reached: "):
            push(run, "me/others")

    hub.broken = 503
    check()
    with socket.socket() as free:
        free.bind(("localhost", 0))
        ask(f"http://localhost:{free.getsockname()[1]}")
    check()


def test_a_hub_that_never_answers_is_not_waited_for_for_ever(run, ask, monkeypatch):
    for module in ("repmlp_jax.storage.hub", "repmlp_jax.deploy.push"):
        monkeypatch.setattr(f"{module}.SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("localhost", 0))
        silent.listen()
        ask(f"http://localhost:{silent.getsockname()[1]}")
        with pytest.raises(ConnectionError, match=r"me/pets cannot be reached: .*timed out"):
            load_model("hf://me/pets")
        with pytest.raises(ConnectionError, match=r"me/pets cannot be reached: .*timed out"):
            push(run, "me/pets")


def test_who_may_not_write_is_told_to_log_in(hub, run):
    hub.broken = 403
    with pytest.raises(PermissionError, match="me/pets may not be written to with this token; `hf auth login` logs in"):
        push(run, "me/pets")


def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(hub, run, tmp_path):
    (run / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results.json is damaged"):
        push(run, "me/pets")
    (run / "model" / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        push(run, "me/pets")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        push(tmp_path / "nowhere", "me/pets")
    with pytest.raises(FileNotFoundError, match=r"holds no model\.json"):
        push(tmp_path, "me/pets")
    with pytest.raises(ValueError, match="names the revision v1: a model is pushed to OWNER/NAME"):
        push(run, "me/pets@v1")
    with pytest.raises(ValueError, match="pets is not a model of the hub"):
        push(run, "pets")
    assert not hub.requests


def test_without_the_client_one_line_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for arguments in (["summary", "hf://me/pets"], ["push", str(run), "me/pets"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert result.stderr == (
            "error: huggingface_hub is not installed. For models on the Hugging Face hub run "
            'pip install "repmlp_jax[hub]"\n'
        )
