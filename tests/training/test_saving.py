"""When states are saved, and what an older run left."""

import csv
import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_recipe import get_config
from tiny_runs import run, saved_steps

from repmlp_jax.storage.checkpoint_format import CheckpointError, read_record
from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.storage.digest import digests
from repmlp_jax.training import default_config, loop, saving, train_and_evaluate
from repmlp_jax.training.config import BEFORE
from repmlp_jax.training.evaluation import Evaluator
from repmlp_jax.training.saving import Saving

STORED = Path(__file__).with_name("stored_run.zip")


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(saving, "time", clock)
    return clock


def state_of(step):
    return {"x": jnp.full(3, step, jnp.int32), "key": jax.random.key(step)}


@pytest.fixture
def checkpoints(tmp_path):
    with Checkpoints(tmp_path) as opened:
        yield opened


def steps_saved(checkpoints):
    checkpoints.wait()
    return checkpoints.steps()


def offer(saver, step, accuracy=None, **options):
    saver.offer(step, state_of(step), {} if accuracy is None else {"test_accuracy": accuracy}, **options)


def test_without_a_limit_every_state_is_saved(checkpoints):
    saver = Saving(checkpoints, 0.0)
    for step in (1, 2, 3):
        offer(saver, step)
    assert steps_saved(checkpoints) == [2, 3]


def test_within_the_limit_none_is_saved_but_the_last(checkpoints, clock):
    saver = Saving(checkpoints, 10.0)
    for step in (1, 2, 3):
        offer(saver, step)
        assert steps_saved(checkpoints) == []
    clock.now += 10
    offer(saver, 4)
    assert steps_saved(checkpoints) == [4]
    offer(saver, 5)
    assert steps_saved(checkpoints) == [4]
    offer(saver, 6, must=True)
    assert steps_saved(checkpoints) == [4, 6]


def test_the_best_within_the_limit_is_held_and_saved_before_the_next(checkpoints, clock):
    saver = Saving(checkpoints, 10.0)
    for step, accuracy in enumerate([0.1, 0.9, float("nan"), 0.9, 0.5, None], 1):
        offer(saver, step, accuracy)
    assert steps_saved(checkpoints) == []
    clock.now += 10
    offer(saver, 7, 0.2)
    assert steps_saved(checkpoints) == [2, 7]
    assert checkpoints.best_step() == 2
    # What is as good as the best that is saved is not the best.
    offer(saver, 8, 0.9)
    offer(saver, 9, must=True)
    assert steps_saved(checkpoints) == [2, 7, 9]
    offer(saver, 10, 0.95)
    saver.save_held()
    assert steps_saved(checkpoints) == [9, 10]
    saver.save_held()
    assert steps_saved(checkpoints) == [9, 10]


def test_the_steps_since_the_best_are_the_same_after_a_resumption(checkpoints, clock):
    saver = Saving(checkpoints, 10.0)
    since = []
    for step, accuracy in enumerate([None, 0.5, 0.9, 0.9, float("nan"), 0.1], 1):
        since.append(saver.steps_since_best(step, {} if accuracy is None else {"test_accuracy": accuracy}))
        offer(saver, step, accuracy)
    assert since == [0, 0, 0, 1, 0, 3]
    offer(saver, 7, 0.3, must=True)
    checkpoints.wait()
    with Checkpoints(checkpoints.folder) as again:
        assert again.scores() == {3: 0.9, 7: 0.3}
        resumed = Saving(again, 10.0)
        assert [resumed.steps_since_best(7), resumed.steps_since_best(8), saver.steps_since_best(7)] == [4, 0, 4]
        assert resumed.steps_since_best(8, {"test_accuracy": 0.95}) == 0


def test_a_held_state_outlives_the_donation_of_its_arrays(checkpoints, clock):
    saver = Saving(checkpoints, 10.0)
    state = state_of(1)
    expected = digests(state)
    saver.offer(1, state, {"test_accuracy": 0.5})
    jax.tree.map(lambda array: array.delete(), state)
    saver.save_held()
    step, restored = checkpoints.restore(jax.eval_shape(lambda: state_of(1)))
    assert (step, digests(restored)) == (1, expected)


SCORES = {22: 0.3, 44: 0.8, 66: 0.4, 88: 0.5}


@pytest.fixture
def scored(monkeypatch, as_users_have_it):
    """Runs of four epochs, of which the second is the best; what comes after training is left out."""
    epoch = iter(())

    def evaluate(*_):
        return dict(loss=1.0, accuracy=SCORES[next(epoch)])

    class Metrics(loop.Metrics):
        def __init__(self, workdir, step, scores):
            nonlocal epoch
            epoch = iter(sorted(set(SCORES) - {other for other in SCORES if other <= step}))
            super().__init__(workdir, step, scores)

    monkeypatch.setattr(loop, "Metrics", Metrics)
    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr(loop, "fuse_and_save", lambda *_, **__: {})
    return get_config(epochs=4, checkpoint_every_seconds=1000.0, checkpoint_every_steps=0, steps_per_call=22)


@pytest.mark.slow
def test_the_best_and_the_last_are_there_at_the_end_whatever_was_killed(scored, clock, tmp_path, monkeypatch):
    train_and_evaluate(scored, tmp_path / "undisturbed")
    assert saved_steps(tmp_path / "undisturbed") == [44, 88]

    def killed_at(step, seconds_from_then):
        """A run that has time to save from a step on, and is killed as it has evaluated the next."""
        add = loop.Metrics.add

        def add_and_die(self, **row):
            add(self, **row)
            if row["step"] == step:
                clock.now += seconds_from_then
            if row["step"] > step:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(loop.Metrics, "add", add_and_die)
            with pytest.raises(KeyboardInterrupt):
                train_and_evaluate(scored, tmp_path / "killed")

    # The best is held, and lost with the process.
    killed_at(44, 0)
    assert saved_steps(tmp_path / "killed") == []
    # It is found again, and saved before the next.
    killed_at(66, 1000)
    assert saved_steps(tmp_path / "killed") == [44, 66]
    train_and_evaluate(scored, tmp_path / "killed")
    for step in (44, 88):
        one, other = (read_record(tmp_path / name / "checkpoints" / str(step)) for name in ("undisturbed", "killed"))
        assert one == other
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("undisturbed", "killed")]
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 5


@pytest.mark.slow
def test_patience_and_the_best_weights_survive_a_kill(scored, clock, tmp_path, monkeypatch, capsys):
    ends = []

    def end(workdir, model, task, weights, training, average):
        ends.append((weights, digests(nnx.state(model))))
        return {}

    monkeypatch.setattr(loop, "fuse_and_save", end)
    # Other processes may have another clock, or save after every epoch.
    config = get_config(**{**scored, "patience": 1, "final_weights": "best"})
    train_and_evaluate(config, tmp_path / "undisturbed")
    said = capsys.readouterr().out
    assert "ended early: no test accuracy above the 80.00% of epoch 2 in patience=1 epochs" in said
    assert ends[0][0] == dict(which="best", step=44, epoch=2, steps_trained=66)

    # Killed once the third epoch's row is written, and again when everything is saved.
    def add_and_die(self, **row):
        add(self, **row)
        if row["step"] == 66:
            raise KeyboardInterrupt

    def die(*_, **__):
        raise KeyboardInterrupt

    add = loop.Metrics.add
    for name, instead in (("Metrics.add", add_and_die), ("fuse_and_save", die)):
        with monkeypatch.context() as patch:
            patch.setattr(f"repmlp_jax.training.loop.{name}", instead)
            with pytest.raises(KeyboardInterrupt):
                train_and_evaluate(config, tmp_path / "killed")
    assert saved_steps(tmp_path / "killed") == [44, 66]
    trained = len(list((tmp_path / "killed" / "metrics.csv").read_text().splitlines()))
    train_and_evaluate(config, tmp_path / "killed")
    assert len((tmp_path / "killed" / "metrics.csv").read_text().splitlines()) == trained
    assert ends[1] == ends[0]
    texts = [(tmp_path / name / "metrics.csv").read_text() for name in ("undisturbed", "killed")]
    assert texts[0] == texts[1]

    # The last weights are still there, and with more patience the run goes on.
    config.final_weights = "last"
    train_and_evaluate(config, tmp_path / "killed")
    assert ends[-1][0] == dict(which="last", step=66, epoch=3, steps_trained=66)
    assert ends[-1][1] != ends[0][1]
    config.patience = 2
    train_and_evaluate(config, tmp_path / "killed")
    assert ends[-1][0]["steps_trained"] == 88
    # A best checkpoint that is damaged is named with what can be done.
    config.final_weights = "best"
    for path in (tmp_path / "killed" / "checkpoints" / "44").rglob("*"):
        if path.is_file() and "d" in path.parts[-2:]:
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best weights cannot be read; with final_weights='last' .* step 88: "):
        train_and_evaluate(config, tmp_path / "killed")


@pytest.mark.slow
def test_what_is_held_is_saved_when_a_loss_is_not_finite(scored, clock, tmp_path, monkeypatch):
    fetch_metrics = loop.fetch_metrics

    def fail_after_the_second_epoch(state):
        state, seen = fetch_metrics(state)
        return state, seen._replace(failed_step=60) if seen.step > 44 else seen

    monkeypatch.setattr(loop, "fetch_metrics", fail_after_the_second_epoch)
    with pytest.raises(FloatingPointError, match=r"loss of step 60 is not finite, .* checkpoint is of step 44"):
        train_and_evaluate(scored, tmp_path)
    assert saved_steps(tmp_path) == [44]


def test_every_field_that_came_later_says_what_runs_did_before():
    with zipfile.ZipFile(STORED) as file:
        stored = json.loads(file.read("config.json"))
    assert set(default_config()) - set(stored) == set(BEFORE)


@pytest.mark.slow
def test_a_run_of_an_earlier_version_is_resumed(tmp_path):
    """It was killed after step 30 of 44, and its configuration lacks what came later."""
    with zipfile.ZipFile(STORED) as file:
        file.extractall(tmp_path)
    before = (tmp_path / "metrics.csv").read_text()
    code, output = run(tmp_path)
    assert code == 0, output
    assert "resuming from step 30 of 44" in output
    text = (tmp_path / "metrics.csv").read_text()
    assert text.startswith(before)
    assert [row["step"] for row in csv.DictReader(text.splitlines())] == ["22", "44"]
    assert np.isfinite(json.loads((tmp_path / "results.json").read_text())["fused"]["loss"])
    assert json.loads((tmp_path / "config.json").read_text())["checkpoint_every_seconds"] == 0
