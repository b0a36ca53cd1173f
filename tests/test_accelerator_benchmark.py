"""The command for whoever has a GPU or a TPU, on small models."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import patience
import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_key(rows, key):
    return {row["name"]: row[key] for row in rows if key in row}


@pytest.fixture
def parts(monkeypatch):
    """Makes the modules of the benchmark importable."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def journal(parts, tmp_path):
    from on_accelerator.journal import Journal

    return Journal(tmp_path / "journal.jsonl", budget=patience.seconds(300))


@pytest.mark.slow
def test_every_part_on_small_models(tmp_path):
    out = tmp_path / "results" / "found.jsonl"
    # From another folder, by a relative one; --quick makes one epoch of the 100.
    options = ("--quick", "--out", out, "--workdir", "runs", "--variants", "", "wide_convnet", "--seeds", 0, 1)
    code, output = run("check", "speed", "table1", *options, cwd=tmp_path)
    assert code == 0, output
    rows = lines(out)
    assert f"all checks hold ({len(by_key(rows, 'right'))}), 1 left out" in output
    assert not by_key(rows, "failed")
    assert by_key(rows, "left_out") == {"official PyTorch": "--official names no folders of its code"}
    found = {row["name"]: row for row in rows}
    assert {row["part"] for row in rows} == {"check", "speed", "table1"}
    for row in rows:
        assert row["provenance"]["devices"].endswith("(cpu)")
        assert {"date", "command", "versions", "machine"} <= row["provenance"].keys()
    assert set(by_key(rows, "right")) == {
        "small pure_mlp, the first of the process",
        "small RepMLPNet-T224, after that",
        "forms for this device",
        "small pure_mlp: fused against trained",
        "small RepMLPNet-T224: fused against trained",
        "killed and unbroken run, algorithms deterministic",
    }
    killed = found["killed and unbroken run, algorithms deterministic"]
    assert killed["same_bits"]
    assert 0 < killed["resumed_from_step"] < killed["steps"]
    for name in ("small pure_mlp 4 fused float32", "small pure_mlp 4 step float32"):
        assert found[name]["minimum_ms"] <= found[name]["median_ms"] <= found[name]["maximum_ms"]
    assert found["matrix product in float32 at highest precision"]["tflops"] > 0
    for name in ("pure_mlp", "wide_convnet"):
        assert [found[f"{name}, seed {seed}"]["epochs"] for seed in (0, 1)] == [1, 1]
        assert found[f"{name}, 1 epochs, fused"]["seeds"] == 2
        assert 0 <= found[f"{name}, 1 epochs, fused"]["mean"] <= 1


@pytest.mark.slow
def test_what_does_not_fit_into_the_budget_is_named(tmp_path):
    out = tmp_path / "found.jsonl"
    out.write_text('{"an": "earlier line"}\n')
    code, output = run("check", "speed", "table1", "--quick", "--budget", 0.1, "--out", out)
    assert code == 0, output
    earlier, *rows = lines(out)
    assert earlier == {"an": "earlier line"}
    left_out = by_key(rows, "left_out")
    assert len(left_out) == len(rows)
    assert {
        "small pure_mlp, the first of the process",
        "killed and unbroken run",
        "forms for this device",
        "small pure_mlp: fused against trained",
        "matrix products",
        "whole epochs",
        "1 runs",
    } <= left_out.keys()
    assert all("are left" in why for name, why in left_out.items() if name != "official PyTorch")
    assert f"nothing was checked, {len(rows)} left out" in output


@pytest.mark.slow
def test_a_run_of_table1_that_fails_is_a_line(tmp_path):
    out = tmp_path / "found.jsonl"
    empty = tmp_path / "nothing"
    empty.mkdir()
    code, output = run("table1", "--cifar", "nothing", "--variants", "", "--out", "found.jsonl", cwd=tmp_path)
    assert code == 1, output
    assert "Traceback" not in output
    assert "nothing was checked, 1 failed" in output
    (row,) = lines(out)
    assert row["name"] == "pure_mlp, seed 0"
    assert row["failed"].startswith("RuntimeError: exit code 2: error: ")
    assert str(empty) in row["failed"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--out", "."], "--out {}: Is a directory"),
        (["table1", "--cifar", "none.npz"], "--cifar: there is no file or folder {}/none.npz"),
        (["speed", "--official", "none"], "--official: there is no folder {}/none"),
        (["table1", "--at_once", "0"], "--at_once must be at least 1, got 0"),
    ],
)
def test_arguments_that_cannot_be_used_are_one_line(tmp_path, arguments, message):
    code, output = run(*arguments, cwd=tmp_path)
    assert code == 2
    if "--out" in arguments:
        message = message.format(".")
    assert output == f"error: {message.format(tmp_path)}\n"


def test_all_checks_hold_only_if_some_ran_and_nothing_failed(journal):
    assert journal.summary() == "nothing was checked"
    journal.add("check", "one", right=True)
    journal.add("check", "two", right=True)
    journal.add("speed", "three", left_out="no time")
    assert journal.summary() == "all checks hold (2), 1 left out"
    assert journal.all_right()
    with journal.attempt("check", "four"):
        raise KeyError
    assert journal.summary() == "2 checks hold, 1 failed, 1 left out"
    assert not journal.all_right()
    journal.add("check", "five", right=False)
    assert journal.summary() == "1 of 3 checks do not hold, 1 failed, 1 left out"


def test_a_program_that_fails_takes_no_other_with_it(journal, monkeypatch, tmp_path):
    from on_accelerator import check

    def calls(net, arguments):
        def fail():
            raise MemoryError  # which says nothing

        if "RepMLPNet" in net:
            return {"highest": fail, "bfloat16": fail}
        return {"highest": fail, "bfloat16": lambda: ([1.0, 2.0], [1.0, 2.02])}

    monkeypatch.setattr(check, "_calls", calls)
    check.fused_is_trained(journal, quick=True)
    rows = lines(tmp_path / "journal.jsonl")
    assert set(by_key(rows, "failed")) == {
        "small pure_mlp: fused against trained, highest",
        "small RepMLPNet-T224: fused against trained, highest",
        "small RepMLPNet-T224: fused against trained, bfloat16",
    }
    assert by_key(rows, "right") == {"small pure_mlp: fused against trained": True}
    assert journal.summary() == "1 checks hold, 3 failed"


# What stands in for train.py: its checkpoints are empty folders; it resumes from the last one, and says so.
TRAIN = """
import pathlib, sys, time
(workdir,) = (argument.partition("=")[2] for argument in sys.argv if "workdir" in argument)
{first}
folder = pathlib.Path(workdir, "checkpoints")
folder.mkdir(parents=True, exist_ok=True)
step = max((int(path.name) for path in folder.iterdir()), default=0)
if step and {says_so}:
    print(f"resuming from step {{step}} of 66", flush=True)
while step < 66:
    time.sleep(0.3)
    step += {steps}
    (folder / str(step)).mkdir()
time.sleep(600)
"""
HEALTHY = dict(first="", says_so=True, steps=11)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stand_in", "busy", "failure"),
    [
        ({}, 0, None),
        # The kill does not wait for what else the process does.
        ({}, 4, None),
        ({"steps": 66}, 0, "the run had saved its last step before it was killed"),
        ({"first": "sys.exit(0)"}, 0, "ended with exit code 0"),
        ({"first": "'killed' in workdir and sys.exit(0)"}, 0, "ended with exit code 0 before it was killed"),
        ({"says_so": False}, 0, "its log names no step that it resumed from"),
        ({"first": "'killed' in workdir and time.sleep(600)"}, 0, "the runs did not end within 6 s"),
    ],
    ids=["healthy", "busy", "late", "broken", "over", "silent", "hangs"],
)
def test_a_kill_that_was_none_is_found(journal, monkeypatch, tmp_path, stand_in, busy, failure):
    from on_accelerator import killed_runs

    (tmp_path / "train.py").write_text(TRAIN.format(**HEALTHY | stand_in))
    monkeypatch.setattr(killed_runs, "REPOSITORY", tmp_path)
    monkeypatch.setattr(killed_runs.KilledRuns, "_digests", lambda *_: {"array": 1})
    seconds = 6 if failure and "6 s" in failure else patience.seconds(60)
    with killed_runs.KilledRuns(argparse.Namespace(quick=True, cifar=None), seconds) as runs:
        time.sleep(busy)
        runs.compare(journal, "check")
    (row,) = lines(tmp_path / "journal.jsonl")
    assert row["name"] == "killed and unbroken run, algorithms deterministic"
    if failure is None:
        assert row["right"]
        assert 0 < row["resumed_from_step"] < 66
    else:
        assert failure in row["failed"]
        assert not journal.all_right()


@pytest.mark.slow
def test_other_bits_do_not_hold(journal, monkeypatch, tmp_path):
    from on_accelerator import killed_runs

    (tmp_path / "train.py").write_text(TRAIN.format(**HEALTHY))
    monkeypatch.setattr(killed_runs, "REPOSITORY", tmp_path)
    monkeypatch.setattr(killed_runs.KilledRuns, "_digests", lambda self, kind, run: {"array": run})
    with killed_runs.KilledRuns(argparse.Namespace(quick=False, cifar=None), patience.seconds(60)) as runs:
        runs.compare(journal, "check")
    rows = lines(tmp_path / "journal.jsonl")
    assert set(by_key(rows, "same_bits").values()) == {False}
    # Where XLA chooses, other bits are no error.
    assert by_key(rows, "right") == {"killed and unbroken run, algorithms deterministic": False}


def test_runs_beside_each_other_leave_a_file_of_xla_flags_as_it_is(parts, monkeypatch, tmp_path, caplog):
    from on_accelerator.killed_runs import _kinds

    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    assert _kinds(quick=False) == {
        "deterministic": "--xla_a=1 --xla_gpu_deterministic_ops=true",
        "as XLA chooses": "--xla_a=1 --xla_gpu_deterministic_ops=false",
    }
    path = tmp_path / "flags"
    monkeypatch.setenv("XLA_FLAGS", str(path))
    assert _kinds(quick=False) == {"as the file in XLA_FLAGS says": str(path)}
    assert f"the file {path}" in caplog.text
