"""The same training with several seeds."""

import json

import pytest
from tiny_recipe import get_config
from tiny_runs import finish, run, saved_steps, start, wait_until
from tolerance import assert_identical

from repmlp_jax import load_model
from repmlp_jax.tasks import repeat
from repmlp_jax.tasks.repeat import train_with_seeds

ACCURACIES = {5: 0.9, 6: 0.8, 7: 0.85}


def scores(accuracy):
    return dict(loss=1.0, accuracy=accuracy, images_per_second=9.0, parameters=7, macs=8)


@pytest.fixture
def trained(monkeypatch):
    """The seeds and folders of runs, which are not trained."""
    runs = []

    def train(config, workdir):
        runs.append((config.seed, workdir.name))
        workdir.mkdir(parents=True)
        averages = {key: dict(loss=1.0, accuracy=0.25) for key in ("ema", "ema_fused")} if config.ema_decay else {}
        return dict(trained=scores(ACCURACIES[config.seed]), fused=scores(0.5), baselines={}) | averages

    monkeypatch.setattr(repeat, "train_and_evaluate", train)
    return runs


def test_mean_and_deviation_of_seeds_in_a_row(trained, tmp_path, capsys):
    summary = train_with_seeds(get_config(seed=5), tmp_path / "runs", 3)
    assert trained == [(5, "seed_5"), (6, "seed_6"), (7, "seed_7")]
    assert summary["seeds"] == [5, 6, 7]
    accuracy = summary["trained"]["accuracy"]
    assert accuracy["values"] == list(ACCURACIES.values())
    assert (accuracy["mean"], accuracy["deviation"]) == pytest.approx((0.85, 0.05))
    assert set(summary["fused"]) == {"loss", "accuracy", "images_per_second"}
    assert json.loads((tmp_path / "runs" / "repeats.json").read_text()) == summary
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["seed 5, 1 of 3", "seed 6, 2 of 3", "seed 7, 3 of 3"]
    assert [line.split() for line in lines[3:6]] == [
        ["seeds", "5", "to", "7", "trained", "fused"],
        ["loss", "1.0000", "±", "0.0000", "1.0000", "±", "0.0000"],
        ["accuracy", "85.00%", "±", "5.00%", "50.00%", "±", "0.00%"],
    ]


def test_averages_of_the_weights_have_columns_of_their_own(trained, tmp_path, capsys):
    summary = train_with_seeds(get_config(seed=5, ema_decay=0.99), tmp_path, 2)
    assert summary["ema_fused"]["accuracy"] == dict(mean=0.25, deviation=0, values=[0.25, 0.25])
    *_, accuracy, _ = capsys.readouterr().out.splitlines()
    assert accuracy.split()[-6:] == ["25.00%", "±", "0.00%"] * 2


@pytest.mark.parametrize(
    ("number", "seed", "message"),
    [(1, 0, "number=1 must be at least 2"), (2, 2**32 - 1, "seeds 4294967295 to 4294967296 must be below 2³²")],
)
def test_what_cannot_be_repeated_is_refused(trained, tmp_path, number, seed, message):
    with pytest.raises(ValueError, match=message):
        train_with_seeds(get_config(seed=seed), tmp_path, number)
    assert not trained


@pytest.mark.slow
def test_killed_in_the_second_run_it_ends_the_same(tmp_path):
    arguments = "--repeat=2", "--config.epochs=1"
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    code, output = run(undisturbed, *arguments)
    assert code == 0, output
    processes = start(killed, *arguments)
    wait_until(lambda: saved_steps(killed / "seed_1")[-1:] >= [10], processes)
    processes[0].kill()
    finish(processes)
    assert not (killed / "repeats.json").exists()
    code, output = run(killed, *arguments)
    assert code == 0, output
    for seed in (0, 1):
        assert_identical(*(load_model(folder / f"seed_{seed}" / "model") for folder in (undisturbed, killed)))
    one, other = (json.loads((folder / "repeats.json").read_text()) for folder in (undisturbed, killed))
    for summary in (one, other):
        for model in ("trained", "fused"):
            del summary[model]["images_per_second"]
    assert one == other
    assert one["trained"]["loss"]["deviation"] > 0
