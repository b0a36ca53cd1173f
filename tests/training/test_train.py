import csv
import json
import struct
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from tensorboardX.proto.event_pb2 import Event
from tiny_recipe import get_config
from tolerance import ROUNDING_F32, assert_close, assert_identical
from training_parts import mesh_of, prepare

from repmlp_jax import load_model
from repmlp_jax.data import augment, load_dataset
from repmlp_jax.interop.report import fuse_report
from repmlp_jax.storage.checkpoint_format import read_record
from repmlp_jax.storage.digest import digests
from repmlp_jax.tasks import classification
from repmlp_jax.training import feed, loop, sharding, train_and_evaluate
from repmlp_jax.training import results as results_of_runs
from repmlp_jax.training.metrics import COLUMNS
from repmlp_jax.training.step import init_state, make_step

pytestmark = pytest.mark.usefixtures("as_users_have_it")
EPOCHS, STEPS, BATCH_SIZE = 3, 11, 128
SCHEMA = COLUMNS | {"test_loss": float, "test_accuracy": float}


@pytest.fixture(scope="module")
def run(as_users_have_it, tmp_path_factory):
    """A finished run on all devices, the functions compiled in each epoch, and the hidden transfers of its steps."""
    workdir = tmp_path_factory.mktemp("run")
    compiled, transfers, lines = [[]], [], []

    def listen(event, _, fun_name=None, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled[-1].append(fun_name)

    class GuardedFeed(feed.ResidentFeed):
        def compile(self, *arguments):
            train_steps = super().compile(*arguments)

            def guarded(*arguments):
                try:
                    with jax.transfer_guard("disallow"):
                        return train_steps(*arguments)
                except jax.errors.JaxRuntimeError as error:
                    # It comes before the state is donated, so that the run can go on.
                    transfers.append(str(error))
                    return train_steps(*arguments)

            return guarded

    class Metrics(loop.Metrics):
        def add(self, **row):
            super().add(**row)
            compiled.append([])

    jax.monitoring.register_event_duration_secs_listener(listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Metrics", Metrics)
        for module in (loop, results_of_runs):
            patch.setattr(module, "print_line", lambda text: lines.extend(text.splitlines()))
        patch.setattr(classification, "ResidentFeed", GuardedFeed)
        config = get_config(
            epochs=EPOCHS, batch_size=BATCH_SIZE, learning_rate=0.2, steps_per_call=4, checkpoint_every_steps=0
        )
        results = train_and_evaluate(config, workdir)
    jax.monitoring.unregister_event_duration_listener(listen)
    return SimpleNamespace(
        workdir=workdir, config=config, results=results, compiled=compiled, transfers=transfers, lines=lines
    )


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: kind(row[name]) for name, kind in SCHEMA.items()} for row in csv.DictReader(file)]


def test_it_leaves_what_it_says(run):
    assert {path.name for path in run.workdir.iterdir()} == {
        *("config.json", "metrics.csv", "times.csv", "curves.png", "tensorboard"),
        *("checkpoints", "model", "fused", "results.json", "classes.csv", "confusion.csv", "confusion.png"),
    }
    assert json.loads((run.workdir / "config.json").read_text()) == json.loads(run.config.to_json())
    assert json.loads((run.workdir / "results.json").read_text()) == run.results
    picture = (run.workdir / "curves.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert picture.endswith(b"IEND\xaeB`\x82")
    assert len(picture) > 10_000
    steps = sorted(int(path.name) for path in (run.workdir / "checkpoints").iterdir())
    best = max(rows(run.workdir), key=lambda row: row["test_accuracy"])["step"]
    assert steps == sorted({best, STEPS * (EPOCHS - 1), STEPS * EPOCHS})


def test_it_says_what_it_does_and_the_lines_of_epochs_align(run):
    first, second, third, *others = run.lines
    parameters = run.results["trained"]["parameters"]
    assert first == f"training  pure_mlp, {parameters:,} parameters, on digits: 1,437 images, 3 epochs of 11 steps"
    assert second == f"device    {jax.device_count()} × cpu"
    assert third == f"writing   {run.workdir}"
    epochs = [line for line in others if line.startswith("epoch")]
    assert len(epochs) == EPOCHS
    assert len({tuple(place for place, sign in enumerate(line) if sign in ".%") for line in epochs}) == 1
    assert others.count(loop.LAG) <= 1
    *_, saved, curves = others
    assert saved == f"saved: {run.workdir / 'model'} and {run.workdir / 'fused'}"
    assert curves == f"curves: {run.workdir / 'curves.png'}"


@pytest.mark.parametrize(("trained", "tested", "lags"), [(0.9, 0.85, False), (0.228, 0.083, True)])
def test_test_scores_far_below_those_of_training_are_explained(trained, tested, lags):
    assert loop._lags(SimpleNamespace(accuracy=trained), dict(accuracy=tested)) == lags
    assert not loop._lags(SimpleNamespace(accuracy=trained), {})


def test_a_row_for_each_epoch(run):
    found = rows(run.workdir)
    assert [row["epoch"] for row in found] == list(range(1, EPOCHS + 1))
    assert [row["step"] for row in found] == [STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    losses = [row["train_loss"] for row in found]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert found[-1]["test_loss"] < found[0]["test_loss"]
    rates = [row["learning_rate"] for row in found]
    assert rates == sorted(rates, reverse=True)
    assert 0 < rates[-1] < 0.001
    # The accuracies are counts over 11 batches of 128 and over the 360 test images.
    for row in found:
        assert (row["train_accuracy"] * STEPS * BATCH_SIZE) % 1 == pytest.approx(0, abs=1e-9)
        assert (row["test_accuracy"] * 360) % 1 in (pytest.approx(0, abs=1e-9), pytest.approx(1, abs=1e-9))


def events(workdir):
    """The events in TensorBoard's files, oldest file first."""
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            # A record is its length, a checksum of that, the event, and a checksum of it.
            (length,) = struct.unpack_from("<Q", content)
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def points(workdir):
    """What TensorBoard shows: (step, name) → value; a restart drops the points from its step on."""
    shown = {}
    for event in events(workdir):
        if event.HasField("session_log"):
            shown = {place: value for place, value in shown.items() if place[0] < event.step}
        shown |= {(event.step, value.tag): value.simple_value for value in event.summary.value}
    return shown


def test_tensorboard_shows_the_same_rows(run):
    shown = points(run.workdir)
    for row in rows(run.workdir):
        assert shown[row["step"], "images_per_second"] > 0
        for name in list(SCHEMA)[2:]:
            assert shown[row["step"], name] == np.float32(row[name])


@pytest.mark.parametrize("name", ["model", "fused"])
def test_the_saved_models_are_as_good_as_was_measured(run, name):
    dataset = load_dataset("digits")
    images, labels = dataset.test
    model = load_model(run.workdir / name)
    logits = model(augment.normalise(jnp.asarray(images), dataset.mean, dataset.std))
    assert float((logits.argmax(1) == labels).mean()) == pytest.approx(
        run.results["trained" if name == "model" else name]["accuracy"], abs=1e-6
    )
    assert_close(np.abs(logits).max(), run.results["largest_output"], ROUNDING_F32)
    assert rows(run.workdir)[-1]["test_accuracy"] == run.results["trained"]["accuracy"]


def test_trained_and_fused_agree(run):
    images = augment.normalise(jnp.asarray(load_dataset("digits").test[0]), (0.3054,), (0.3759,))
    trained, fused = (load_model(run.workdir / name)(images) for name in ("model", "fused"))
    assert_close(fused, trained, ROUNDING_F32)
    assert run.results["largest_output_difference"] < ROUNDING_F32 * run.results["largest_output"]


def test_the_table_is_that_of_the_fuse_report(run):
    report = fuse_report(load_model(run.workdir / "model"))
    for place, name in enumerate(("trained", "fused")):
        assert run.results[name]["parameters"] == report.parameters[place]
        assert run.results[name]["macs"] == report.macs[place]
        assert run.results[name]["images_per_second"] > 0
    assert report.macs[1] < report.macs[0]


def test_what_the_training_took(run):
    assert run.results["weights"] == dict(which="last", step=STEPS * EPOCHS, epoch=EPOCHS, steps_trained=STEPS * EPOCHS)
    training = run.results["training"]
    assert 0 < training["seconds_to_best"] <= training["seconds"]
    assert training["images_per_second"] > BATCH_SIZE * STEPS * (EPOCHS - 1) / training["seconds"]
    assert training["share_waiting_for_data"] == 0
    assert training["peak_memory_bytes"] > 10**8
    # The tables are of all test images.
    lines = [line.split(",") for line in (run.workdir / "classes.csv").read_text().splitlines()[1:]]
    assert sum(int(images) for _, images, _, _ in lines) == 360
    assert sum(int(right) for *_, right, _ in lines) / 360 == run.results["fused"]["accuracy"]


def test_nothing_is_compiled_after_the_first_epoch(run):
    first, second, *others = run.compiled[:EPOCHS]
    assert first.count("jit(step_on)") == 1
    assert first.count("jit(of_one)") == 1
    # The first checkpoint is saved after the first row.
    assert set(second) & {"jit(step_on)", "jit(of_one)", "jit(draw_order)"} == set()
    assert others == [[]] * len(others)


def test_nothing_is_moved_between_host_and_devices_unsaid(run):
    """What a step takes lies where it is computed. (On the CPU, what comes back from the devices is not seen.)"""
    assert run.transfers == []


@pytest.mark.slow
def test_again_it_changes_nothing(run, monkeypatch):
    before = {name: load_model(run.workdir / name) for name in ("model", "fused")}
    metrics = (run.workdir / "metrics.csv").read_bytes()
    checkpoints = sorted((run.workdir / "checkpoints").rglob("*"))
    shown = points(run.workdir)

    def must_not_train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(loop, "fetch_metrics", must_not_train)
    results = train_and_evaluate(run.config, run.workdir)
    for name, model in before.items():
        again = load_model(run.workdir / name)
        assert_identical(again, model)
        assert digests(nnx.state(again)) == digests(nnx.state(model))
    assert (run.workdir / "metrics.csv").read_bytes() == metrics
    assert sorted((run.workdir / "checkpoints").rglob("*")) == checkpoints
    assert points(run.workdir) == shown
    for measured in (results, run.results):
        for name in ("trained", "fused"):
            measured[name].pop("images_per_second", None)
    assert results == run.results


@pytest.mark.parametrize("name", ["model", "fused"])
def test_a_folder_that_the_results_would_not_replace_is_refused_before_training(tmp_path, monkeypatch, name):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=f"run/{name} holds notes.txt: save_model replaces only"):
        train_and_evaluate(get_config(), "~/run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.slow
@pytest.mark.parametrize(("steps_per_call", "saved"), [(22, 0), (1, 1)])
def test_a_loss_that_is_not_finite_names_its_step(tmp_path, monkeypatch, steps_per_call, saved):
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh_of(1))
    config = get_config(
        learning_rate=1e30,
        model="wide_convnet",
        model_arguments=dict(image_size=(8, 8), in_features=1, widths=(4,)),
        steps_per_call=steps_per_call,
        checkpoint_every_steps=steps_per_call,
    )
    # The first update leaves weights of 1e29, whose loss is finite; the second leaves no weight finite.
    with pytest.raises(FloatingPointError) as error:
        train_and_evaluate(config, tmp_path)
    assert str(error.value) == (
        f"the loss of step 2 is not finite, or a parameter or statistic after it; the last checkpoint is of step "
        f"{saved}. A lower learning_rate (now 1e+30) or more warmup_epochs (now 0) may help"
    )
    assert not (tmp_path / "model").exists()


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives(inner)


@pytest.fixture(scope="module")
def prepared(as_users_have_it):
    """The step on one device as it is on CPU, where each is a call."""
    return prepare(get_config(), mesh_of(1))


@pytest.fixture(scope="module")
def prepared_loop(as_users_have_it):
    """The step on one device as it is on a GPU or TPU, where the steps of a call are a loop on the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feed, "platform_of", lambda mesh: "gpu")
        return prepare(get_config(), mesh_of(1))


@pytest.mark.parametrize("which", ["prepared", "prepared_loop"])
def test_the_step_does_not_talk_to_the_host(which, request):
    train_steps, *arguments = request.getfixturevalue(which)
    jaxpr = jax.make_jaxpr(lambda *arguments: train_steps(*arguments, 1))(*arguments)
    found = set(primitives(jaxpr.jaxpr))
    assert {"conv_general_dilated", "dot_general"} < found
    assert not [name for name in found if "callback" in name or "feed" in name or name == "device_put"]


class Hiding(nnx.Module):
    """A model whose loss does not show NaN, as XLA compiles `relu` on the CPU."""

    def __init__(self):
        self.parameters = nnx.Param(jnp.ones(3))
        self.statistics = nnx.BatchStat(jnp.ones(3))

    def loss(self, batch, key):
        return jnp.nan_to_num(self.parameters[...].sum()), jnp.int32(0)


@pytest.mark.parametrize("where", ["parameters", "statistics"])
def test_nan_that_the_loss_hides_is_found(where):
    model, optimizer = Hiding(), optax.sgd(0.1)
    sizes = dict(batch_size=1, steps_per_epoch=3, mesh=mesh_of(1))
    one_step = jax.jit(make_step(nnx.graphdef(model), optimizer, Hiding.loss, **sizes))
    state = one_step(init_state(model, optimizer), {}, jax.random.key(0))
    assert state.failed_step == -1
    poisoned = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), getattr(state, where))
    state = one_step(state._replace(**{where: poisoned}), {}, jax.random.key(0))
    assert jnp.isfinite(state.totals.loss)
    assert one_step(state, {}, jax.random.key(0)).failed_step == state.failed_step == 2


@pytest.mark.parametrize("which", ["prepared", pytest.param("prepared_loop", marks=pytest.mark.slow)])
def test_it_does_not_matter_how_steps_are_spread_over_calls(which, request):
    prepared = request.getfixturevalue(which)
    expected = digests(prepared.train(7))
    assert digests(prepared.train(1, 1, 1, 1, 1, 1, 1)) == expected
    assert digests(prepared.train(3, 4)) == expected


def test_a_checkpoint_says_of_which_configuration_it_is(run):
    config = json.loads((run.workdir / "config.json").read_text())
    assert config["epochs"] == EPOCHS
    for checkpoint in (run.workdir / "checkpoints").iterdir():
        assert read_record(checkpoint)["config"] == config
