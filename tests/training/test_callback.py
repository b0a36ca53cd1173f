"""A function of the caller that gets the rows of metrics."""

import csv

import jax
import pytest
from jax.experimental import multihost_utils
from tiny_recipe import get_config
from tiny_runs import finish, saved_steps, start_code
from tolerance import assert_identical

from repmlp_jax import load_model
from repmlp_jax.training import train_and_evaluate
from repmlp_jax.training.callback import error_of

pytestmark = pytest.mark.usefixtures("as_users_have_it")


def written(workdir):
    """The rows on disk, less what was not measured."""
    with (workdir / "metrics.csv").open() as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


class Recorder:
    """Keeps the rows, and raises at the row of a step."""

    def __init__(self, workdir, fails_at=None):
        self.workdir, self.rows, self.fails_at = workdir, [], fails_at

    def __call__(self, row):
        assert written(self.workdir)[-1]["step"] == row["step"], "the row is not on disk yet"
        self.rows.append(row)
        if row["step"] == self.fails_at:
            raise ZeroDivisionError("out of quota")


@pytest.mark.slow
def test_each_row_is_passed_on_and_an_error_comes_after_a_checkpoint(tmp_path):
    config = get_config(log_every_steps=15, checkpoint_every_steps=0)
    undisturbed, disturbed = (Recorder(tmp_path / name) for name in ("undisturbed", "disturbed"))
    train_and_evaluate(config, undisturbed.workdir, on_row=undisturbed)
    assert [row["step"] for row in undisturbed.rows] == [15, 22, 30, 44]
    assert all(type(row) is dict and row["images_per_second"] > 0 for row in undisturbed.rows)
    assert ["test_accuracy" in row for row in undisturbed.rows] == [False, True, False, True]

    # Within an epoch, at the end of one, and after the last step.
    for step in (15, 22, 44):
        disturbed.fails_at = step
        with pytest.raises(ZeroDivisionError, match="out of quota") as error:
            train_and_evaluate(config, disturbed.workdir, on_row=disturbed)
        assert error.value.__notes__ == [f"on_row raised this; step {step} is saved, and the same call resumes from it"]
        assert saved_steps(disturbed.workdir)[-1] == step
    train_and_evaluate(config, disturbed.workdir, on_row=disturbed)
    for run in (undisturbed, disturbed):
        assert [{**row, "images_per_second": 0} for row in run.rows] == [
            {**row, "images_per_second": 0} for row in written(run.workdir)
        ]
    assert_identical(*(load_model(run.workdir / "model") for run in (undisturbed, disturbed)))


TWO_PROCESSES = """
import sys
import jax

sys.path.append("tests/training")
from tiny_recipe import get_config
from repmlp_jax.training import train_and_evaluate

address, number, workdir = sys.argv[1:]
jax.distributed.initialize(address, 2, int(number))


def fail(row):
    raise ZeroDivisionError("out of quota")


# It is passed in process 0 alone.
train_and_evaluate(get_config(checkpoint_every_steps=0), workdir, on_row=None if int(number) else fail)
"""


@pytest.mark.slow
def test_two_processes_save_before_they_raise(tmp_path):
    codes, outputs = finish(start_code(TWO_PROCESSES, str(tmp_path), processes=2, devices=1))
    assert 0 not in codes
    assert saved_steps(tmp_path) == [22]
    assert "ZeroDivisionError: out of quota\non_row raised this; step 22 is saved" in outputs[0]
    assert "RuntimeError: on_row raised an error in process 0: see there" in outputs[1]


@pytest.mark.parametrize("process", [0, 1])
def test_an_error_in_process_0_ends_all_processes(monkeypatch, process):
    def fail(row):
        raise ZeroDivisionError

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda _: True)  # as process 0 has it
    # A function may also be passed in process 0 alone.
    error = error_of(fail if process == 0 else None, {})
    assert isinstance(error, RuntimeError if process else ZeroDivisionError)


@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_function_is_refused(tmp_path):
    with pytest.raises(TypeError, match="on_row must be a function of a dict, not 'print'"):
        train_and_evaluate(get_config(), tmp_path / "run", on_row="print")
    assert not (tmp_path / "run").exists()
