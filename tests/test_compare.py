"""The comparison of two benchmark results."""

import json
import subprocess
import sys
from pathlib import Path

COMPARE = Path(__file__).parents[1] / "benchmarks" / "compare.py"
OLD = {"net": {"seconds": {"median": 1.0, "minimum": 0.9, "maximum": 1.1}}, "provenance": {"machine": 1, "devices": 1}}


def compare(tmp_path, new, old=OLD):
    for name, result in (("old", old), ("new", new)):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    done = subprocess.run(
        [sys.executable, COMPARE, tmp_path / "old.json", tmp_path / "new.json"], capture_output=True, text=True
    )
    return done.returncode, done.stdout


def changed(median, name="seconds", **provenance):
    row = {"median": median, "minimum": median - 0.1, "maximum": median + 0.1}
    return {"net": {name: row}, "provenance": OLD["provenance"] | provenance}


def test_what_became_slower_ends_with_an_error(tmp_path):
    assert compare(tmp_path, changed(1.5)) == (1, "net / seconds: 1.50 × slower (1 → 1.5)\n")


def test_what_became_faster_is_named(tmp_path):
    assert compare(tmp_path, changed(0.5)) == (0, "net / seconds: 2.00 × faster (1 → 0.5)\n")


def test_what_lies_within_the_spread_is_no_change(tmp_path):
    assert compare(tmp_path, changed(1.15)) == (0, "")


def test_a_rate_is_better_where_it_is_larger(tmp_path):
    name = "steps_per_second"
    assert compare(tmp_path, changed(0.5, name), changed(1.0, name))[0] == 1
    assert compare(tmp_path, changed(2.0, name), changed(1.0, name))[0] == 0


def test_another_machine_and_rows_of_one_result_alone_are_named(tmp_path):
    code, output = compare(tmp_path, changed(1.0, "other", machine=2))
    assert code == 0
    assert "another machine: 1 and 2; seconds do not compare, ratios do" in output
    assert "net / seconds: only in the old result" in output
    assert "net / other: only in the new result" in output
