"""Table 1 of the paper: accuracies of its CIFAR-10 models, several runs at once where they fit."""

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from on_accelerator.killed_runs import missing_for_whole_runs

REPOSITORY = Path(__file__).parents[2]
PART = "table1"


def table1(journal, options):
    """Trains each variant with each seed, in processes, and reports accuracies, images/s and how far seeds differ."""
    runs = list(itertools.product(options.variants, options.seeds))
    folder = options.workdir
    finished, waiting, running = {}, list(runs), {}
    if missing := missing_for_whole_runs():
        journal.add(PART, f"{len(runs)} runs", left_out=f"they need {' and '.join(missing)}")
        return
    if not journal.has_time(PART, f"{len(runs)} runs", 15):
        return
    while waiting or running:
        while waiting and len(running) < options.at_once:
            run = waiting.pop(0)
            running[run] = _start(run, folder, options, len(runs))
        for run, process in list(running.items()):
            if process.poll() is not None:
                process = running.pop(run)
                with journal.attempt(PART, _name(run)):
                    finished[run] = _result(journal, folder, run, process)
        if journal.left() < 5:
            for run, process in running.items():
                process.terminate()
                _report_unfinished(journal, folder, run)
            for run in waiting:
                journal.add(PART, _name(run), left_out="its time is over")
            for process in running.values():
                process.wait()
            break
        time.sleep(0.2)
    for variant in options.variants:
        accuracies = [found for (name, _), found in finished.items() if name == variant]
        if len(accuracies) > 1:
            journal.add(
                PART,
                f"{variant or 'pure_mlp'}, {options.epochs} epochs, fused",
                mean=statistics.mean(accuracies),
                minimum=min(accuracies),
                maximum=max(accuracies),
                seeds=len(accuracies),
            )


def _name(run) -> str:
    variant, seed = run
    return f"{variant or 'pure_mlp'}, seed {seed}"


def _workdir(folder, run) -> Path:
    return folder / _name(run).replace(", ", "_").replace(" ", "_")


def _start(run, folder, options, number):
    variant, seed = run
    workdir = _workdir(folder, run)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    if options.quick:
        recipe = [f"--config=benchmarks/on_accelerator/small_table1.py{variant and ':' + variant}"]
    else:
        recipe = [f"--config=configs/cifar.py{variant and ':' + variant}"]
        # Without it, train.py looks where TensorFlow Datasets has its folder.
        recipe += [f"--config.data_dir={options.cifar}"] if options.cifar else []
    arguments = [*recipe, f"--workdir={workdir}", f"--config.epochs={options.epochs}", f"--config.seed={seed}"]
    share = 0.9 / min(number, options.at_once)
    environment = os.environ | {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.2f}"}
    with workdir.with_suffix(".log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "train.py", *arguments], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
        )


def _result(journal, folder, run, process) -> float:
    """The fused accuracy of a run that has ended; all that is known of it becomes a line."""
    workdir = _workdir(folder, run)
    if process.returncode:
        lines = workdir.with_suffix(".log").read_text().strip().splitlines() or ["it wrote nothing"]
        raise RuntimeError(f"exit code {process.returncode}: {lines[-1]}")
    results = json.loads((workdir / "results.json").read_text())
    rows = list(csv.DictReader((workdir / "metrics.csv").open()))
    journal.add(
        PART,
        _name(run),
        epochs=int(rows[-1]["epoch"]),
        accuracy_trained=results["trained"]["accuracy"],
        accuracy_fused=results["fused"]["accuracy"],
        largest_output_difference=results["largest_output_difference"],
        largest_output=results["largest_output"],
        difference_as_run=results["largest_output_difference_as_run"],
        images_per_second_fused=results["fused"]["images_per_second"],
    )
    return results["fused"]["accuracy"]


def _report_unfinished(journal, folder, run):
    path = _workdir(folder, run) / "metrics.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    # A row of an epoch that was not evaluated has an empty cell.
    last = {name: float(rows[-1][name]) for name in ("epoch", "test_accuracy") if rows[-1][name]} if rows else {}
    journal.add(PART, _name(run), left_out="its time is over", **last)
