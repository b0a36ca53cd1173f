"""The command for whoever has a GPU or a TPU, on small models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


def run(*arguments, **environment):
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, cwd=ROOT)
    return done.returncode, done.stdout + done.stderr


def test_every_part_on_small_models(tmp_path):
    out = tmp_path / "results" / "found.jsonl"
    options = (
        "--quick",
        "--out",
        out,
        "--workdir",
        tmp_path / "runs",
        "--epochs",
        1,
        "--variants",
        "",
        "--seeds",
        0,
        1,
    )
    code, output = run("check", "speed", "table1", *options)
    assert code == 0, output
    assert "all checks hold" in output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert not [row for row in rows if "failed" in row]
    found = {row["name"]: row for row in rows}
    assert {row["part"] for row in rows} == {"check", "speed", "table1"}
    for row in rows:
        assert row["provenance"]["devices"].endswith("(cpu)")
        assert {"date", "command", "versions", "machine"} <= row["provenance"].keys()
    assert found["forms for this device"]["right"]
    assert found["pure_mlp: fused against trained"]["right"]
    assert found["killed and unbroken run, algorithms deterministic"]["same_bits"]
    assert found["pure_mlp, the first of the process"]["fused_as_on_the_host"]
    for name in ("small pure_mlp 4 fused float32", "small pure_mlp 4 step float32"):
        assert found[name]["minimum_ms"] <= found[name]["median_ms"] <= found[name]["maximum_ms"]
    assert found["matrix product in float32 at highest precision"]["tflops"] > 0
    assert found["official PyTorch"]["left_out"] == "--official names no folders of its code"
    for seed in (0, 1):
        assert 0 <= found[f"pure_mlp, seed {seed}"]["accuracy_fused"] <= 1
    assert found["pure_mlp, 1 epochs, fused"]["seeds"] == 2


def test_what_does_not_fit_into_the_budget_is_named(tmp_path):
    out = tmp_path / "found.jsonl"
    out.write_text('{"an": "earlier line"}\n')
    code, output = run("speed", "table1", "--quick", "--budget", 1, "--out", out)
    assert code == 0, output
    earlier, *rows = (json.loads(line) for line in out.read_text().splitlines())
    assert earlier == {"an": "earlier line"}
    left_out = {row["name"]: row["left_out"] for row in rows if "left_out" in row}
    assert {"whole epochs", "2 runs"} <= left_out.keys()
    assert all("are left" in why for name, why in left_out.items() if name != "official PyTorch")
