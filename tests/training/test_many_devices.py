import csv
import functools
import json
import math
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, randomised
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec
from streamed_digits import prepare as prepare_digits
from tiny_recipe import get_config
from tiny_runs import finish, start, start_code, undisturbed_and_killed, wait_for_checkpoint
from tolerance import ROUNDING_BF16, assert_identical, assert_trees_close
from training_parts import mesh_of, prepare

from repmlp_jax import load_model
from repmlp_jax.data import augment, load_dataset
from repmlp_jax.models.registry import create_model
from repmlp_jax.tasks.class_scores import batch_metrics, mean_metrics
from repmlp_jax.tasks.classification import Classification
from repmlp_jax.training.evaluation import Evaluator, ResidentBatches
from repmlp_jax.training.sharding import (
    gathered,
    make_mesh,
    on_this_process,
    put_everywhere,
    put_state,
    replicated,
    state_shardings,
)
from repmlp_jax.training.step import fetch_metrics

pytestmark = pytest.mark.usefixtures("as_users_have_it")
# Sums over a batch in another order round differently, and the gradients of random weights multiply that.
ANOTHER_ORDER = {jnp.float32: 1e-5, jnp.float64: 1e-13}


@pytest.mark.slow
def test_eight_devices_train_as_one_does():
    config = get_config(learning_rate=0.01)
    config.model_arguments.param_dtype = dtype = jnp.float64
    with jax.enable_x64(True):
        one, eight = (prepare(config, mesh_of(devices)).train(3) for devices in (1, 8))
    assert all(len(array.sharding.device_set) == 8 for array in jax.tree.leaves(eight.parameters))
    assert_trees_close(eight.parameters, one.parameters, ANOTHER_ORDER[dtype])
    # The statistics of norms are those of the whole batch of 64, not of a device's 8 images.
    assert_trees_close(eight.statistics, one.statistics, ANOTHER_ORDER[dtype])
    (_, seen_by_eight), (_, seen_by_one) = fetch_metrics(eight), fetch_metrics(one)
    assert seen_by_eight.accuracy == seen_by_one.accuracy
    # Totals are float32 always.
    assert seen_by_eight.loss == pytest.approx(seen_by_one.loss, rel=ANOTHER_ORDER[jnp.float32])


LARGE = dict(widths=(32,), groups=1)  # FC3 has 256 × 32² elements


@pytest.mark.slow
def test_split_parameters_train_as_whole_ones_do():
    devices, fsdp = 8, 4
    config = get_config(learning_rate=0.01)
    config.model_arguments.update(LARGE)
    whole = prepare(config, mesh_of(1)).train(3)
    split = prepare(config, mesh_of(devices, fsdp)).train(3)
    sizes = {
        "whole": [leaf.size for leaf in jax.tree.leaves(whole.parameters)],
        "on a device": [leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(split.parameters)],
    }
    # The large kernels lie in parts, and so do their momenta; small arrays are everywhere.
    assert sum(sizes["on a device"]) < 1.5 * sum(sizes["whole"]) / fsdp
    for parameter, momentum in zip(
        jax.tree.leaves(split.parameters), jax.tree.leaves(split.optimizer[1][0].trace), strict=True
    ):
        assert momentum.sharding == parameter.sharding
    assert_trees_close(split.parameters, whole.parameters, ANOTHER_ORDER[jnp.float32])
    assert_trees_close(split.statistics, whole.statistics, ANOTHER_ORDER[jnp.float32])


def test_a_mesh_that_does_not_fit_is_named():
    with pytest.raises(
        ValueError, match=r"mesh \(data=2, fsdp=3\) does not fit 8 devices; use one of \(8, 1\), \(4, 2\)"
    ):
        make_mesh(data=2, fsdp=3)
    assert dict(make_mesh(fsdp=4).shape) == dict(data=2, fsdp=4)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((8, 392, 392), 0),  # 98 rows would be padded to 104, 98 columns to 128
        ((2, 256, 256), 1),
        ((1, 3136, 3136), 1),
        ((512, 1000), 0),
        ((3, 3, 64, 64), 2),
        ((250, 250), None),
        ((64, 64), None),
    ],
)
def test_the_axis_is_split_whose_parts_are_padded_least(shape, axis):
    spec = state_shardings(jax.ShapeDtypeStruct(shape, jnp.float32), mesh_of(8, 4)).spec
    assert spec == (PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, "fsdp"))


def test_gradients_of_split_parameters_lie_in_parts():
    mesh = mesh_of(8, 4)
    parameters = dict(kernel=jnp.arange(2**14, dtype=jnp.float32).reshape(128, 128) / 2**14, bias=jnp.ones(128))
    x = jnp.arange(8 * 128, dtype=jnp.float32).reshape(8, 128) / 2**10

    def loss(parameters):
        return jnp.square(x @ parameters["kernel"] + parameters["bias"]).mean()

    shardings = state_shardings(parameters, mesh)
    split = put_state(parameters, shardings)
    gradients = jax.jit(jax.grad(lambda parameters: loss(gathered(parameters, mesh))))(split)
    assert not gradients["kernel"].is_fully_replicated
    for name, place in shardings.items():
        assert gradients[name].sharding.is_equivalent_to(place, parameters[name].ndim)
    # Of a sharding constraint alone they are whole on every device.
    constrained = jax.jit(jax.grad(lambda split: loss(lax.with_sharding_constraint(split, replicated(mesh)))))(split)
    assert constrained["kernel"].is_fully_replicated
    assert_trees_close(gradients, jax.grad(loss)(parameters), ANOTHER_ORDER[jnp.float32])


def test_what_is_on_the_mesh_and_what_is_not_comes_to_every_device_and_back():
    mesh = mesh_of(8, 4)
    tree = dict(kernel=jnp.arange(2**14, dtype=jnp.float32).reshape(128, 128), key=jax.random.key(3))
    split = put_state(tree, state_shardings(tree, mesh))
    assert split["kernel"].addressable_shards[0].data.shape in ((32, 128), (128, 32))
    for whole in (put_everywhere(split, mesh), put_everywhere(tree, mesh)):
        assert whole["kernel"].addressable_shards[0].data.shape == (128, 128)
    alone = on_this_process(split)
    assert len(alone["kernel"].sharding.device_set) == 1
    assert (alone["kernel"] == tree["kernel"]).all()
    assert jax.random.key_data(alone["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()


def test_gradients_of_a_batch_in_parts_are_those_of_the_whole():
    """Without norms, which see each part by itself, it does not matter in how many parts a batch is done."""
    config = get_config(learning_rate=0.01, crop_padding=0, flip=False)
    mesh = mesh_of(4)
    norms = dict(model="wide_convnet", model_arguments=dict(image_size=(8, 8), in_features=1, widths=(4,)))
    for name, value in norms.items():
        config[name] = value

    def evaluated(loss):
        return lambda model, batch, key: loss(nnx.view(model, use_running_average=True), batch, key)

    with pytest.MonkeyPatch.context() as patch:
        loss = Classification.loss
        patch.setattr(Classification, "loss", lambda self, *batch: evaluated(functools.partial(loss, self))(*batch))
        whole = prepare(config, mesh).train(3)
        config.accumulate = 4
        in_parts = prepare(config, mesh).train(3)
    assert_trees_close(in_parts.parameters, whole.parameters, ANOTHER_ORDER[jnp.float32])
    (_, seen), (_, expected) = fetch_metrics(in_parts), fetch_metrics(whole)
    assert seen.accuracy == expected.accuracy
    assert seen.loss == pytest.approx(expected.loss, rel=ANOTHER_ORDER[jnp.float32])


@pytest.mark.slow
def test_bfloat16_computes_and_float32_is_kept():
    config = get_config(learning_rate=0.01)
    exact = prepare(config, mesh_of(2)).train(2)
    config.model_arguments.dtype = jnp.bfloat16
    rounded = prepare(config, mesh_of(2)).train(2)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.parameters)} == {jnp.dtype(jnp.float32)}
    (_, seen), (_, expected) = fetch_metrics(rounded), fetch_metrics(exact)
    assert seen.loss == pytest.approx(expected.loss, rel=ROUNDING_BF16)
    assert seen.loss != expected.loss


@pytest.fixture(scope="module")
def model(as_users_have_it):
    arguments = get_config().model_arguments
    return randomised(abstract(create_model, "pure_mlp", **arguments))


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "examples", "batch_size"), [(8, 360, 200), (8, 13, 16), (1, 360, 7)])
def test_every_test_image_counts_once(model, devices, examples, batch_size):
    dataset = load_dataset("digits")
    images, labels = (array[:examples] for array in dataset.test)
    mesh = mesh_of(devices)
    batches = ResidentBatches(dict(image=images, label=labels), batch_size, mesh)

    def predict(model, batch):
        return model(augment.normalise(batch["image"], dataset.mean, dataset.std))

    scores = Evaluator(batches, predict, batch_metrics, mean_metrics, mesh).evaluate(model)

    logits = nnx.view(model, use_running_average=True)(
        jnp.asarray((images / 255 - dataset.mean[0]) / dataset.std[0], jnp.float32)
    )
    logits = np.asarray(logits, np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(examples), labels]
    assert scores["accuracy"] == (logits.argmax(1) == labels).mean()
    assert scores["loss"] == pytest.approx(losses.mean(), rel=ANOTHER_ORDER[jnp.float32])


@pytest.fixture(scope="module")
def alone(as_users_have_it, tmp_path_factory):
    """The run of one process."""
    workdir = tmp_path_factory.mktemp("alone")
    codes, outputs = finish(start(workdir, processes=1))
    assert codes == [0], outputs
    return workdir


def assert_same_run(workdir, expected):
    """The same parameters, but for rounding, and the same rows."""
    # 44 steps at a rate of 0.02: each carries the rounding of the ones before along.
    assert_trees_close(*(nnx.state(load_model(folder / "model"), nnx.Param) for folder in (workdir, expected)), 1e-4)
    found, wanted = (list(csv.DictReader((folder / "metrics.csv").open())) for folder in (workdir, expected))
    assert [row["step"] for row in found] == [row["step"] for row in wanted] == ["22", "44"]
    for row, other in zip(found, wanted, strict=True):
        assert all(math.isclose(float(row[name]), float(other[name]), rel_tol=2e-2) for name in row)
    names = {path.name for path in workdir.iterdir()}
    assert names == {path.name for path in expected.iterdir()}


FINE_TUNING = (
    "--config.ema_decay=0.9",
    "--config.freeze=embedding",
    "--config.layer_decay=0.8",
    "--config.mesh.fsdp=2",
)


@pytest.mark.slow
def test_killed_processes_start_again_and_end_as_an_undisturbed_pair(tmp_path):
    """Bit for bit, with a dataset of which each process streams its part."""
    *folders, _ = undisturbed_and_killed(tmp_path, *prepare_digits(tmp_path / "data"), *FINE_TUNING)
    for name in ("model", "fused", "ema", "ema_fused"):
        assert_identical(*(load_model(folder / name) for folder in folders))


SPREAD = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from repmlp_jax.training.sharding import make_mesh, on_this_process, state_shardings, put_everywhere, put_state

jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mesh = make_mesh(fsdp=4)
kernel = jnp.arange(2**14, dtype=jnp.float32).reshape(128, 128)
tree = dict(kernel=kernel, key=jax.random.key(3), other=jax.random.key(4, impl="rbg"))
split = put_state(tree, state_shardings(tree, mesh))
assert len(split["kernel"].sharding.device_set) == 4 and not split["kernel"].is_fully_addressable
alone = on_this_process(put_everywhere(split, mesh))
for name in ("key", "other"):
    assert alone[name].dtype == tree[name].dtype
    np.testing.assert_array_equal(*(jax.random.key_data(one[name]) for one in (alone, tree)))
np.testing.assert_array_equal(alone["kernel"], tree["kernel"])
np.testing.assert_array_equal(on_this_process(split)["kernel"], tree["kernel"])
print("same")
"""


@pytest.mark.slow
def test_keys_and_numbers_come_to_the_devices_of_two_processes_and_back():
    codes, outputs = finish(start_code(SPREAD, processes=2, devices=2))
    assert codes == [0, 0], outputs
    assert all("same" in output for output in outputs)


@pytest.mark.slow
def test_two_processes_end_early_at_the_same_epoch_as_one_and_report_all_images(tmp_path):
    # The weights stay as they are, and the scores change with the running statistics alone.
    fields = ("epochs=6", "learning_rate=1e-12", "patience=1", "final_weights=best", "calibration=True")
    arguments = [*prepare_digits(tmp_path / "data"), *(f"--config.{field}" for field in fields)]
    ends, tables = [], []
    for processes in (2, 1):
        workdir = tmp_path / str(processes)
        codes, outputs = finish(start(workdir, *arguments, processes=processes))
        assert set(codes) == {0}, outputs
        results = json.loads((workdir / "results.json").read_text())
        scores = [float(row["test_accuracy"]) for row in csv.DictReader((workdir / "metrics.csv").open())]
        best = scores.index(max(scores)) + 1
        assert results["weights"] == dict(which="best", step=22 * best, epoch=best, steps_trained=22 * len(scores))
        assert len(scores) == best + 1 < 6
        assert "ended early: no test accuracy above the " in outputs[0]
        assert 0 <= results["training"]["share_waiting_for_data"] < 1
        ends.append((best, scores, results["fused"]["accuracy"]))
        tables.append([(workdir / name).read_text() for name in ("classes.csv", "confusion.csv")])
    assert ends[0] == ends[1]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_too_many_damaged_pictures_end_both_processes_with_their_number(tmp_path):
    streamed = prepare_digits(tmp_path / "data", damaged_every=10)
    codes, outputs = finish(start(tmp_path / "run", *streamed, processes=2))
    assert codes == [2, 2], outputs
    for output in outputs:
        (line,) = (line for line in output.splitlines() if line.startswith("error: "))
        assert re.fullmatch(r"error: \d+ of 1\d+ examples are damaged, more than 5%; the log names them", line)
        assert re.search(r"example \d+ is damaged; the next one replaces it: ", output)


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_a_signal_to_one_stops_both(alone, tmp_path):
    # Two steps a look: they agree on a look, not on a step that none of them would come to.
    processes = start(tmp_path, "--config.steps_per_call=2", processes=2)
    wait_for_checkpoint(tmp_path, 5, processes)
    processes[1].send_signal(signal.SIGINT)  # which it passes on as SIGTERM
    codes, outputs = finish(processes)
    assert codes == [128 + signal.SIGTERM, 128 + signal.SIGINT], outputs
    assert "is saved; the same command resumes from it" in outputs[0]
    # At first each has the whole model, then they split one.
    codes, outputs = finish(start(tmp_path, "--config.steps_per_call=2", "--config.mesh.fsdp=2", processes=2))
    assert codes == [0, 0], outputs
    assert_same_run(tmp_path, alone)
    # One process speaks for both.
    assert "saved: " in outputs[0]
    assert "accuracy" not in outputs[1]


@pytest.mark.slow
def test_saved_on_eight_devices_it_goes_on_with_two_and_with_one(alone, tmp_path):
    split = "--config.mesh.fsdp=4"
    for devices, step, arguments in ((8, 5, [split]), (2, 20, ["--config.mesh.fsdp=2"])):
        processes = start(tmp_path, *arguments, devices=devices)
        wait_for_checkpoint(tmp_path, step, processes)
        processes[0].kill()
        finish(processes)
    codes, outputs = finish(start(tmp_path))
    assert codes == [0], outputs
    assert "resuming from step" in outputs[0]
    assert_same_run(tmp_path, alone)


@pytest.mark.slow
def test_a_process_with_another_configuration_is_named(tmp_path):
    processes = start(tmp_path, processes=2, each=([], ["--config.seed=5"]))
    codes, outputs = finish(processes)
    assert codes == [2, 2], outputs
    assert all("processes [1] of 2 have another configuration than process 0" in output for output in outputs)
