"""Rows between the ends of epochs, and the trace of some steps."""

import errno
import os
import shutil

import pytest
from tiny_recipe import get_config
from tiny_runs import saved_steps

from repmlp_jax import plots
from repmlp_jax.training import train_and_evaluate
from repmlp_jax.training.metrics import Metrics, replace_text

pytestmark = pytest.mark.usefixtures("as_users_have_it")
ROW = dict(learning_rate=0.1, train_loss=1.5, train_accuracy=0.5, images_per_second=9.0)


def test_what_was_not_measured_is_an_empty_cell(tmp_path):
    metrics = Metrics(tmp_path, 0, ("loss", "accuracy"))
    metrics.add(epoch=1, step=5, **ROW)
    metrics.add(epoch=1, step=10, **ROW, test_loss=1.25, test_accuracy=0.75)
    metrics.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1:] == [
        "1,5,0.1,1.5,0.5,,",
        "1,10,0.1,1.5,0.5,1.25,0.75",
    ]
    again = Metrics(tmp_path, 7, ("loss", "accuracy"))
    again.close()
    assert [row["step"] for row in again.rows] == [5]
    assert again.rows[0]["test_loss"] is None


def test_rows_between_epochs_are_drawn_between_them(tmp_path):
    metrics = Metrics(tmp_path, 0, ("accuracy",))
    for step in (5, 10, 15, 20):
        metrics.add(epoch=(step + 9) // 10, step=step, **ROW, **({"test_accuracy": 0.5} if step == 20 else {}))
    metrics.close()
    losses, shares = plots.learning_curves(plots.read_rows(tmp_path)).axes
    assert [list(line.get_xdata()) for line in losses.lines] == [[0.5, 1, 1.5, 2]]
    assert [list(line.get_xdata()) for line in shares.lines] == [[0.5, 1, 1.5, 2], [2]]


def test_within_the_first_epoch_the_axis_is_the_step(tmp_path):
    metrics = Metrics(tmp_path, 0, ("accuracy",))
    for step in (5, 10):
        metrics.add(epoch=1, step=step, **ROW)
    metrics.close()
    axes = plots.learning_curves(plots.read_rows(tmp_path)).axes[0]
    assert (axes.get_xlabel(), list(axes.lines[0].get_xdata())) == ("step", [5, 10])


@pytest.fixture
def written(tmp_path):
    metrics = Metrics(tmp_path, 0, ("loss",))
    for step in (5, 10, 15):
        metrics.add(epoch=1, step=step, **ROW)
    metrics.close()
    return tmp_path / "metrics.csv"


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda text: "", "1: '' is not the header .*Restore it, or remove the file"),
        (lambda text: "[]\n" + text, r"1: '\[\]\\n' is not the header .*Restore it, or remove the file"),
        (lambda text: text[:-5], "4: '1,15,0.1,1.5,' is not a complete row of"),
        (lambda text: text[:-1], "4: '1,15,0.1,1.5,0.5,' is not a complete row of"),
        (lambda text: text.replace("10", "ten"), "3: '1,ten,0.1,"),
        (lambda text: text.replace("1,10,", "\0\0"), "3: "),
        (lambda text: text + text.splitlines(keepends=True)[-1], "5: '1,15,.* of a later step than the rows before"),
    ],
)
def test_what_is_no_row_is_named_and_stays(written, damage, line):
    written.write_text(damage(written.read_text()))
    before = written.read_bytes()
    with pytest.raises(ValueError, match=f"metrics.csv, line {line}.*: the run then resumes without"):
        Metrics(written.parent, 15, ("loss",))
    assert written.read_bytes() == before


def test_a_run_may_go_on_with_other_scores(tmp_path):
    """As one of an earlier version, or one of which the calibration is asked later."""
    for step, scores in ((5, ("loss",)), (10, ("loss", "top_5_accuracy")), (15, ("loss",))):
        metrics = Metrics(tmp_path, step - 1, scores)
        metrics.add(epoch=1, step=step, **ROW, **{f"test_{name}": 0.25 for name in scores})
        metrics.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,step,learning_rate,train_loss,train_accuracy,test_loss,test_top_5_accuracy",
        *("1,5,0.1,1.5,0.5,0.25,", "1,10,0.1,1.5,0.5,0.25,0.25", "1,15,0.1,1.5,0.5,0.25,"),
    ]
    _, shares = plots.learning_curves(plots.read_rows(tmp_path)).axes
    assert [len(line.get_xdata()) for line in shares.lines] == [3, 1]


def test_rows_that_are_missing_are_said(written, caplog):
    metrics = Metrics(written.parent, 15, ("loss",))
    metrics.warn_of_missing((5, 10, 15))
    assert not caplog.records
    metrics.warn_of_missing(range(5, 20))
    metrics.close()
    assert caplog.messages == [
        f"{written} has no rows for steps 6, 7, 8, 9, 11 and 7 more, which were run before; they are not repeated, "
        "and the rows stay missing"
    ]


def test_a_file_that_cannot_be_written_is_named_and_stays(written, monkeypatch):
    def fsync(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = written.read_text()
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: .*metrics.csv'") as error:
        replace_text(written, "other")
    assert error.value.errno == errno.ENOSPC
    assert written.read_text() == before
    assert not list(written.parent.glob("*.partial*"))


@pytest.mark.slow
def test_an_interrupted_run_has_the_same_rows_between_epochs(tmp_path):
    config = get_config()
    config.update(log_every_steps=5, eval_every_epochs=2, checkpoint_every_steps=8, steps_per_call=3, profile_steps=4)
    train_and_evaluate(config, tmp_path)
    undisturbed = (tmp_path / "metrics.csv").read_text()
    rows = plots.read_rows(tmp_path)
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 22, 25, 30, 35, 40, 44]
    assert [row["step"] for row in rows if row["test_accuracy"] is not None] == [44]
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    trace = traces[0].read_bytes()
    assert all(f"({name}_perceptron)/".encode() in trace for name in ("global", "partition", "local"))
    for step in saved_steps(tmp_path)[-1:]:
        shutil.rmtree(tmp_path / "checkpoints" / str(step))
    train_and_evaluate(config, tmp_path)
    assert (tmp_path / "metrics.csv").read_text() == undisturbed


def test_a_file_that_was_lost_is_written_again_and_the_picture_stays(written):
    picture = written.parent / "curves.png"
    before = picture.read_bytes()
    written.unlink()
    Metrics(written.parent, 15, ("loss",)).close()
    assert written.read_text().splitlines() == ["epoch,step,learning_rate,train_loss,train_accuracy,test_loss"]
    assert picture.read_bytes() == before
