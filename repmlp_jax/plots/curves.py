"""Pictures of a training: learning curves, and the ROC curve of face verification."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from repmlp_jax.local_path import local_path
from repmlp_jax.plots.palette import BLUE, ORANGE, OTHERS

EVERY_RUN_HAS = ("epoch", "step", "train_loss", "train_accuracy")


def read_rows(run: str | Path) -> list[dict]:
    """Reads the rows of a run's `metrics.csv` for `learning_curves`.

    Args:
        run: the run's folder.

    Raises:
        FileNotFoundError: if the folder holds no `metrics.csv`.
        TypeError: if `run` is not a path.
        ValueError: if the file has no epoch yet, or is damaged.
    """
    path = local_path(run, "run") / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no {path.name}: it is not the folder of a run that has finished an epoch")
    rows = []
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                numbers = {name: None if value == "" else float(value) for name, value in row.items()}
                if missing := [name for name in EVERY_RUN_HAS if numbers[name] is None]:
                    raise ValueError(f"it has no {missing[0]}")
                if low := [f"{name} {numbers[name]:g}" for name in ("epoch", "step") if not (numbers[name] or 0) >= 1]:
                    raise ValueError(f"it is of {low[0]}")
                rows.append(numbers)
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: row {len(rows) + 1} cannot be read ({error})") from error
    if not rows:
        raise ValueError(f"{path} has no epoch yet")
    return rows


def learning_curves(rows: Sequence[dict]) -> Figure:
    """Draws the losses, and all scores that are shares of 1, of training and test over the epochs.

    Args:
        rows: dicts with epoch, step, train_loss (nats), train_accuracy, and test_… for each score; None if it was not
            measured. The step determines the position of a row within its epoch.

    Raises:
        TypeError: if `rows` is not a list of dicts.
        ValueError: if a row lacks an entry that every run or the first row has.
    """
    if not isinstance(rows, Sequence) or not all(isinstance(row, Mapping) for row in rows):
        raise TypeError(f"rows must be a list of dicts, as read_rows returns it, not {rows!r:.80}")
    for number, row in enumerate(rows, start=1):
        if missing := [name for name in {*EVERY_RUN_HAS, *rows[0]} if name not in row]:
            raise ValueError(f"row {number} of rows has no {min(missing)!r}; it has {', '.join(row)}")
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    # In the first epoch nothing says how many steps it has.
    is_first_epoch = len(rows) > 1 and rows[-1]["epoch"] == 1
    steps_per_epoch = 1 if is_first_epoch else max((row["step"] / row["epoch"] for row in rows), default=1)
    losses, shares = figure.subplots(1, 2)
    tests = [name for name in (rows[0] if rows else ()) if name.startswith("test_")]
    colours = dict(zip(tests, (ORANGE, ORANGE, *OTHERS) if "test_loss" in tests else (ORANGE, *OTHERS), strict=False))
    for name, colour, style in [("train_loss", BLUE, "--"), ("train_accuracy", BLUE, "--")] + [
        (name, colours.get(name, "black"), "-") for name in tests
    ]:
        axes, scale = (losses, 1) if name.endswith("_loss") else (shares, 100)
        measured = [row for row in rows if row[name] is not None]
        epochs = [row["step"] / steps_per_epoch for row in measured]
        values = [row[name] * scale for row in measured]
        label = name.replace("_", " ").removesuffix(" loss")
        axes.plot(epochs, values, style, color=colour, label=label, marker="." if len(measured) < 20 else None)
    scores = {name.removeprefix("train_").removeprefix("test_") for name in ("train_accuracy", *tests)} - {"loss"}
    of_scores = "accuracy (%)" if scores == {"accuracy"} else "score (%)"
    for axes, label in ((losses, "loss (nats)"), (shares, of_scores)):
        axes.set_xlabel("step" if is_first_epoch else "epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if rows:
            axes.legend(fontsize="medium" if len(axes.lines) < 4 else "x-small")
    return figure


def roc_curve(curves: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]) -> Figure:
    """Draws true accept rates of face verification over false accept rates.

    A curve shows the largest true accept rate whose false accept rate is at most that on the axis. The logarithmic axis
    starts below the smallest positive rate; its start stands for a false accept rate of 0.

    Args:
        curves: name → false and true accept rates, shares of 1 that never fall, as in `verification.roc`.

    Raises:
        TypeError: if `curves` is not a dict of pairs of lists of numbers.
        ValueError: if the numbers of false and true accept rates of a curve differ.
    """
    if not isinstance(curves, Mapping):
        raise TypeError(f"curves must be a dict, name → false and true accept rates, not {type(curves).__name__}")
    curves = {name: _rates(name, pair) for name, pair in curves.items()}
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    leftmost = min([1e-3, *(rate / 2 for far, _ in curves.values() for rate in far if rate > 0)])
    chance = np.geomspace(leftmost, 1, 200)
    axes.plot(chance, 100 * chance, ":", color="grey", label="chance")
    for index, (name, (far, tar)) in enumerate(curves.items()):
        # The last of equal false accept rates has the largest true accept rate.
        best = {max(rate, leftmost): 100 * value for rate, value in zip(far, tar, strict=True)}
        colour = (BLUE, ORANGE, *OTHERS)[index % (2 + len(OTHERS))]
        axes.plot(list(best), list(best.values()), color=colour, label=name, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_xlim(leftmost, 1)
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_formatter(lambda rate, _: f"{100 * rate:g}")
    axes.set_xlabel("false accept rate (%)")
    axes.set_ylabel("true accept rate (%)")
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[1:] + handles[:1], names[1:] + names[:1], loc="lower right")
    return figure


def _rates(name, pair) -> tuple[np.ndarray, np.ndarray]:
    """The false and true accept rates of a curve."""
    try:
        far, tar = (np.asarray(rates, float) for rates in pair)
    except (TypeError, ValueError):
        raise TypeError(f"the curve {name!r} of curves must be a pair of lists of numbers, not {pair!r:.80}") from None
    if far.shape != tar.shape or far.ndim != 1:
        raise ValueError(f"the curve {name!r} has {far.size} false and {tar.size} true accept rates")
    return far, tar
