"""What may differ when a run is resumed, and what is said where it may not."""

import json
import logging
import os
import shutil
import socket
from pathlib import Path

import jax
import pytest
from tiny_recipe import get_config

from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.training import environment, only_run, train_and_evaluate
from repmlp_jax.training.resuming import check_resumable

pytestmark = pytest.mark.usefixtures("as_users_have_it")
EXAMPLES = 1437
STEPS_PER_EPOCH = EXAMPLES // 64
CONSTANT = dict(schedule="constant")


def plain(config):
    return json.loads(config.to_json())


def make_run(workdir: Path, step=STEPS_PER_EPOCH, named=None, made_with=None, **changes):
    """A run's folder with a checkpoint, of which only what it says about itself is real."""
    made_with = environment.environment(EXAMPLES) if made_with is None else made_with
    config = plain(get_config(**changes))
    with Checkpoints(workdir / "checkpoints", config=config, environment=made_with) as checkpoints:
        checkpoints.save(step, {"x": jax.numpy.zeros(())})
    (workdir / "config.json").write_text(json.dumps(config))


def resume(workdir, examples=EXAMPLES, **changes):
    check_resumable(workdir, get_config(**changes), examples)


def test_initial_weights_that_cannot_be_read_may_be_replaced(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file gone"):
        train_and_evaluate(get_config(init_from="gone"), tmp_path)
    resume(tmp_path, init_from="found")


@pytest.mark.parametrize(
    "changes",
    [
        dict(data_dir="/elsewhere"),
        dict(eval_batch_size=7, eval_every_epochs=2),
        dict(steps_per_call=9, checkpoint_every_steps=2, log_every_steps=3, profile_steps=4),
        dict(init_from="gone", init_head="skip"),
    ],
)
def test_what_does_not_change_what_is_learned_may_change(tmp_path, changes):
    make_run(tmp_path)
    resume(tmp_path, **changes)


def test_before_the_first_checkpoint_the_initial_weights_may_not_change(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(plain(get_config())))
    with pytest.raises(ValueError, match="init_from is 'others' now and '' there"):
        resume(tmp_path, init_from="others")


@pytest.mark.parametrize("there", ["both", "a checkpoint alone", "a checkpoint of another run"])
def test_the_recipe_is_read_from_the_checkpoints_as_well(tmp_path, there):
    make_run(tmp_path, seed=1)
    checkpoint = tmp_path / "checkpoints" / str(STEPS_PER_EPOCH)
    where = tmp_path if there == "both" else checkpoint
    if there == "a checkpoint alone":
        (tmp_path / "config.json").unlink()
    if there == "a checkpoint of another run":
        (tmp_path / "config.json").write_text(json.dumps(plain(get_config())))
    with pytest.raises(ValueError, match="another configuration") as error:
        resume(tmp_path)
    assert str(error.value) == (
        f"{where} holds a run of another configuration: seed is 0 now and 1 there. "
        f"Choose another workdir, or resume that run with its own configuration"
    )


def test_a_checkpoint_under_another_name_is_refused(tmp_path):
    make_run(tmp_path)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "22", folder / "99")
    with pytest.raises(ValueError, match="holds what no run saved under its name: 99 holds step 22"):
        resume(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("[]", "holds a list and not the fields"), ('{"seed": ', r"is damaged \(Expecting value")]
)
def test_a_configuration_that_cannot_be_read_is_one_error(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"{tmp_path}/config.json {message}.*Remove it: each checkpoint holds"):
        resume(tmp_path)


@pytest.mark.parametrize("epochs", [1, 3, 300])
def test_a_constant_rate_allows_more_epochs(tmp_path, epochs):
    make_run(tmp_path, **CONSTANT)
    resume(tmp_path, epochs=epochs, **CONSTANT)


def test_a_rate_that_has_not_dropped_yet_allows_more_epochs(tmp_path):
    drops = dict(schedule="steps", drop_at=(0.5,))
    make_run(tmp_path, **drops)
    resume(tmp_path, epochs=3, **drops)
    make_run(tmp_path, step=23, **drops)
    with pytest.raises(ValueError, match="first that of step 23"):
        resume(tmp_path, epochs=3, **drops)


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_a_rate_that_depends_on_the_epochs_says_what_to_do(tmp_path, schedule):
    make_run(tmp_path, schedule=schedule)
    with pytest.raises(ValueError, match="epochs is 3 now and 2 in ") as error:
        resume(tmp_path, epochs=3, schedule=schedule)
    assert f"{tmp_path}/checkpoints/22: with schedule='{schedule}' the learning rate of earlier steps" in str(
        error.value
    )
    assert "with init_from set to the model/ of this one" in str(error.value)


def test_fewer_epochs_than_are_done_are_refused(tmp_path):
    make_run(tmp_path, step=23, **CONSTANT)
    with pytest.raises(ValueError, match=r"epochs=1 ends at step 22, before .*/23; set epochs to 2 or more"):
        resume(tmp_path, epochs=1, **CONSTANT)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: jax.enable_x64(True), r"JAX_ENABLE_X64=False \(now True\).*: set JAX_ENABLE_X64=False, or choose"),
        (lambda: jax.threefry_partitionable(False), r"JAX_THREEFRY_PARTITIONABLE=True \(now False\)"),
        (lambda: jax.default_prng_impl("rbg"), r"JAX_DEFAULT_PRNG_IMPL=threefry2x32 \(now rbg\)"),
        (lambda: jax.default_matmul_precision("highest"), r"JAX_DEFAULT_MATMUL_PRECISION=None \(now highest\)"),
    ],
)
def test_other_flags_of_jax_are_refused(tmp_path, other, message):
    make_run(tmp_path)
    with other(), pytest.raises(ValueError, match=f"/22 was made with {message}"):
        resume(tmp_path)


def test_another_number_of_examples_is_refused(tmp_path):
    make_run(tmp_path)
    with pytest.raises(ValueError, match="made with 1437 training examples, and now there are 1438"):
        resume(tmp_path, examples=1438)


def test_other_versions_and_devices_are_said(tmp_path, caplog):
    there = environment.environment(EXAMPLES)
    there["versions"] = there["versions"] | {"jaxlib": "0.1"}
    there["devices"] = ["NVIDIA H100"]
    make_run(tmp_path, made_with=there)
    with caplog.at_level(logging.WARNING, "repmlp_jax"):
        resume(tmp_path)
    (record,) = caplog.records
    assert "/22 was made with jaxlib=0.1 (now " in record.getMessage()
    assert "the devices=NVIDIA H100 (now cpu)" in record.getMessage()


def test_a_run_without_a_record_counts_as_the_same(tmp_path, caplog):
    make_run(tmp_path, made_with={})
    with jax.enable_x64(True):
        resume(tmp_path)
    assert not caplog.records


def test_a_second_run_in_a_folder_names_the_first(tmp_path, caplog):
    with only_run.only_run(tmp_path):
        with pytest.raises(BlockingIOError) as error:
            train_and_evaluate(get_config(), tmp_path)
        text = (tmp_path / "lock").read_text()
    assert text.startswith(f"process {os.getpid()} on {socket.gethostname()}, since 20")
    assert str(error.value) == (f"another run is in {tmp_path}: {text}. Wait for it, end it, or choose another workdir")
    assert not list(tmp_path.iterdir())
    # What a killed run leaves there does not matter.
    (tmp_path / "lock").write_text(text)
    with only_run.only_run(tmp_path):
        assert (tmp_path / "lock").exists()
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_a_warning_says_so(tmp_path, caplog, monkeypatch):
    def flock(*_):
        raise OSError(only_run.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(only_run.fcntl, "flock", flock)
    with only_run.only_run(tmp_path):
        pass
    assert f"{tmp_path} cannot be locked" in caplog.text
