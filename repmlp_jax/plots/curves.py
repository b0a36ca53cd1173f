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
        ValueError: if the file has no epoch yet, or is damaged.
    """
    path = local_path(run) / "metrics.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{run} holds no {path.name}: it is no folder of a run that has finished an epoch")
    rows = []
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=1):
            try:
                numbers = {name: None if value == "" else float(value) for name, value in row.items()}
                if missing := [name for name in EVERY_RUN_HAS if numbers[name] is None]:
                    raise ValueError(f"it has no {missing[0]}")
                rows.append(numbers)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged: row {number} cannot be read ({error})") from error
    if not rows:
        raise ValueError(f"{path} has no epoch yet")
    return rows


def learning_curves(rows: Sequence[dict]) -> Figure:
    """Draws the losses, and all scores that are shares of 1, of training and test over the epochs.

    Args:
        rows: dicts with epoch, step, train_loss (nats), train_accuracy, and test_… for each score; None if it was not
            measured. The step determines the position of a row within its epoch.
    """
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
    for axes, label in ((losses, "loss (nats)"), (shares, "share (%)")):
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
        ValueError: if the numbers of false and true accept rates of a curve differ.
    """
    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    leftmost = min([1e-3, *(rate / 2 for far, _ in curves.values() for rate in far if rate > 0)])
    chance = np.geomspace(leftmost, 1, 200)
    axes.plot(chance, 100 * chance, ":", color="grey", label="chance")
    for index, (name, (far, tar)) in enumerate(curves.items()):
        if len(far) != len(tar):
            raise ValueError(f"the curve {name!r} has {len(far)} false and {len(tar)} true accept rates")
        # The last of equal false accept rates has the largest true accept rate.
        best = {max(rate, leftmost): 100 * value for rate, value in zip(far, tar, strict=True)}
        colour = (BLUE, ORANGE, *OTHERS)[index % (2 + len(OTHERS))]
        axes.plot(list(best), list(best.values()), color=colour, label=name, drawstyle="steps-post")
    axes.set_xscale("log")
    axes.set_xlim(leftmost, 1)
    axes.set_ylim(0, 102)
    axes.set_xlabel("false accept rate")
    axes.set_ylabel("true accept rate (%)")
    axes.grid(alpha=0.3)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[1:] + handles[:1], names[1:] + names[:1], loc="lower right")
    return figure
