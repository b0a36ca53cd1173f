"""The average of the weights: what it holds, what is saved of it, and that runs with it resume exactly."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_recipe import get_config
from tolerance import ROUNDING_F32, assert_close, assert_identical, assert_trees_close
from training_parts import killed_at, mesh_of, prepare

from repmlp_jax import fuse_params, load_model
from repmlp_jax.models.state import arrays_of
from repmlp_jax.storage.checkpoint_format import read_record
from repmlp_jax.storage.digest import digests
from repmlp_jax.training import loop, sharding, train_and_evaluate
from repmlp_jax.training.average import Average, follow, start

pytestmark = pytest.mark.usefixtures("as_users_have_it")


def averages_of(values, decay):
    """The averages after each value of a list, the first of which they start from."""
    average = values[0]
    for step, value in enumerate(values[1:]):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * value
        yield average


def test_parameters_and_statistics_are_averaged_with_a_warm_up_and_counts_are_the_last():
    values = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)

    def now(step):
        statistics = dict(mean=jnp.asarray(values[step]) + 1, batches=jnp.int32(step), key=jax.random.key(step))
        parameters = dict(kernel=jnp.asarray(values[step]), fixed=jnp.full(4, 0.1))
        return Average(nnx.State(parameters), nnx.State(statistics))

    average = start(*now(0))
    for step, expected in enumerate(averages_of(values.astype(np.float64), 0.5)):
        average = follow(average, now(step + 1), jnp.int32(step), 0.5)
        assert_close(average.parameters["kernel"], expected, ROUNDING_F32)
        assert_close(average.statistics["mean"], expected + 1, ROUNDING_F32)
        assert average.statistics["batches"] == step + 1
        assert average.statistics["key"] == jax.random.key(step + 1)
    # What does not change has the bits that it had.
    assert average.parameters["fixed"].tolist() == now(0).parameters["fixed"].tolist()


def test_in_half_precision_a_slow_average_moves():
    ones, twos = (nnx.State(dict(kernel=jnp.full(1, value, jnp.bfloat16))) for value in (1, 2))
    average = start(ones, nnx.State({}))
    for step in range(10_000, 10_100):
        average = follow(average, Average(twos, nnx.State({})), jnp.int32(step), 0.999)
    assert average.parameters["kernel"].dtype == jnp.float32
    assert_close(average.parameters["kernel"], [2 - 0.999**100], 1e-4)


@pytest.mark.parametrize(("devices", "accumulate"), [(2, 1), pytest.param(8, 4, marks=pytest.mark.slow)])
def test_the_step_averages_what_it_leaves(devices, accumulate):
    """On any number of devices, and once for a batch in parts."""
    config = get_config(ema_decay=0.5, accumulate=accumulate)
    prepared = prepare(config, mesh_of(devices))
    states = [prepared.state, *(prepared.train(count) for count in (1, 2, 3))]
    each = [dict(enumerate(jax.tree.leaves(one.parameters))) for one in states]
    found = dict(enumerate(jax.tree.leaves(states[-1].average.parameters)))
    for name in each[0]:
        *_, expected = averages_of([np.asarray(one[name], np.float64) for one in each], 0.5)
        assert_close(found[name], expected, ROUNDING_F32)
    # Without it the weights are the same, bit for bit.
    config.ema_decay = 0.0
    without = prepare(config, mesh_of(devices)).train(3)
    assert without.average is None
    assert digests(without.parameters) == digests(states[-1].parameters)


@pytest.mark.slow
def test_averages_on_eight_devices_are_those_on_one():
    config = get_config(learning_rate=0.01, ema_decay=0.9)
    config.model_arguments.param_dtype = jnp.float64
    with jax.enable_x64(True):
        one, eight = (prepare(config, mesh_of(devices)).train(3) for devices in (1, 8))
    assert all(len(array.sharding.device_set) == 8 for array in jax.tree.leaves(eight.average))
    assert_trees_close(eight.average.parameters, one.average.parameters, 1e-13)


def config_of_runs():
    return get_config(ema_decay=0.9, steps_per_call=3, checkpoint_every_steps=6, learning_rate=0.3)


@pytest.fixture(scope="module")
def run(as_users_have_it, tmp_path_factory):
    """The folder of a run, and what it compiled."""
    workdir, compiled = tmp_path_factory.mktemp("run"), []

    def listen(event, _, fun_name=None, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", lambda **_: mesh_of(1))
        train_and_evaluate(config_of_runs(), workdir)
    jax.monitoring.unregister_event_duration_listener(listen)
    return workdir, compiled


@pytest.mark.slow
def test_a_run_killed_between_two_checkpoints_ends_with_the_same_average(run, tmp_path, monkeypatch):
    unbroken, _ = run
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh_of(1))
    with killed_at(33):
        train_and_evaluate(config_of_runs(), tmp_path)
    train_and_evaluate(config_of_runs(), tmp_path)
    records = [read_record(workdir / "checkpoints" / "44") for workdir in (unbroken, tmp_path)]
    assert records[0]["digests"] == records[1]["digests"]
    assert any(name.startswith("average/") for name in records[0]["digests"])
    for name in ("model", "fused", "ema", "ema_fused"):
        assert_identical(*(load_model(workdir / name) for workdir in (unbroken, tmp_path)))
    assert (unbroken / "metrics.csv").read_bytes() == (tmp_path / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_the_average_is_evaluated_and_saved_beside_the_weights(run):
    workdir, compiled = run
    with (workdir / "metrics.csv").open(newline="") as file:
        *_, row = csv.DictReader(file)
    results = loop.json.loads((workdir / "results.json").read_text())
    assert float(row["test_ema_accuracy"]) == results["ema"]["accuracy"] == results["ema_fused"]["accuracy"]
    assert float(row["test_accuracy"]) == results["trained"]["accuracy"]
    assert results["largest_output_difference_ema"] < 1e-5
    ema, fused, model = (load_model(workdir / name) for name in ("ema", "ema_fused", "model"))
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
    assert_close(fused(images), fuse_params(ema)(images), ROUNDING_F32)
    weights, averages = arrays_of(model), arrays_of(ema)
    assert weights["head.kernel"].tolist() != averages["head.kernel"].tolist()
    assert weights["embedding.norm.mean"].tolist() != averages["embedding.norm.mean"].tolist()
    assert weights["embedding.norm.batches"] == averages["embedding.norm.batches"] == 44
    # The weights and their average are evaluated by one program.
    assert compiled.count("jit(step_on)") == compiled.count("jit(of_one)") - 1 == 1, compiled


def test_a_folder_that_the_average_would_not_replace_is_refused(tmp_path):
    (tmp_path / "ema").mkdir()
    (tmp_path / "ema" / "notes.txt").touch()
    with pytest.raises(FileExistsError, match=r"ema holds notes\.txt: save_model replaces only"):
        train_and_evaluate(get_config(ema_decay=0.9), tmp_path)
