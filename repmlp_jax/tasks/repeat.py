"""The same training with several seeds, and the mean and deviation of its scores."""

import json
import statistics
from pathlib import Path

import jax
from ml_collections import ConfigDict

from repmlp_jax.local_path import local_path
from repmlp_jax.progress import print_line
from repmlp_jax.tasks import train_and_evaluate
from repmlp_jax.training.config import check_config
from repmlp_jax.training.metrics import replace_text
from repmlp_jax.training.results import SAVED_AVERAGES, score

SIZES = "parameters", "macs"  # which no seed changes
MODELS = "trained", "fused", *SAVED_AVERAGES


def train_with_seeds(config: ConfigDict, workdir: str | Path, number: int) -> dict:
    """Trains with the seeds `config.seed`, `config.seed + 1`, …, one after another, each in `workdir/seed_N`.

    A second call resumes: runs that have finished are only evaluated again. It prints a table, and writes it to
    `repeats.json`.

    Args:
        config: as `default_config()`.
        workdir: the folder of the runs; it is created.
        number: of seeds, at least 2.

    Returns:
        `seeds`, and for the `trained` and the `fused` model, and those of averages, name → `mean`, `deviation` (of a
        sample: divided by one less than the number of seeds) and `values`.

    Raises:
        ValueError: if `number` is below 2, or a seed is not below 2³²; as `train_and_evaluate`, which lists further
            errors.
    """
    config = check_config(config)
    if number < 2:
        raise ValueError(f"number={number} must be at least 2: one seed has no deviation")
    seeds = list(range(config.seed, config.seed + number))
    if seeds[-1] >= 2**32:
        raise ValueError(f"the seeds {seeds[0]} to {seeds[-1]} must be below 2³²: choose a lower seed")
    workdir = local_path(workdir)
    results = []
    for place, seed in enumerate(seeds, 1):
        if jax.process_index() == 0:
            print_line(f"seed {seed}, {place} of {number}")
        of_seed = ConfigDict(config)
        of_seed.seed = seed
        results.append(train_and_evaluate(of_seed, workdir / f"seed_{seed}"))
    summary: dict = dict(seeds=seeds)
    for model in (model for model in MODELS if model in results[0]):
        columns = {name: [one[model][name] for one in results] for name in results[0][model] if name not in SIZES}
        summary[model] = {
            name: dict(mean=statistics.fmean(values), deviation=statistics.stdev(values), values=values)
            for name, values in columns.items()
        }
    if jax.process_index() == 0:
        replace_text(workdir / "repeats.json", json.dumps(summary, indent=1))
        print_line(_table(summary))
        print_line(f"saved: {workdir / 'repeats.json'}")
    return summary


def _table(summary) -> str:
    names = [name for name in summary["trained"] if name != "images_per_second"]
    models = [model for model in MODELS if model in summary]
    seeds = summary["seeds"]
    head = f"seeds {seeds[0]} to {seeds[-1]}"
    width = max(map(len, (head, *names))) + 2
    lines = [head.ljust(width) + "".join(f"{model.replace('_', ' '):>20}" for model in models)]
    for name in names:
        pairs = (summary[model][name] for model in models)
        cells = (f"{score(name, pair['mean'])} ± {score(name, pair['deviation'])}" for pair in pairs)
        lines.append(name.replace("_", " ").ljust(width) + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
