"""Pictures of what a model learns. Each function returns a matplotlib Figure that belongs to nobody else."""

from collections.abc import Sequence

from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE, *OTHERS = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"


def learning_curves(rows: Sequence[dict]) -> Figure:
    """Loss, and all scores that are shares of 1, over the epochs; training beside test.

    Args:
        rows: one dict an epoch with epoch, train_loss (nats), train_accuracy, and test_… for each score.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    losses, shares = figure.subplots(1, 2)
    tests = [name for name in (rows[0] if rows else ()) if name.startswith("test_")]
    colours = dict(zip(tests, (ORANGE, ORANGE, *OTHERS) if "test_loss" in tests else (ORANGE, *OTHERS), strict=False))
    for name, colour, style in [("train_loss", BLUE, "--"), ("train_accuracy", BLUE, "--")] + [
        (name, colours.get(name, "black"), "-") for name in tests
    ]:
        axes, scale = (losses, 1) if name.endswith("_loss") else (shares, 100)
        values = [row[name] * scale for row in rows]
        label = name.replace("_", " ").removesuffix(" loss")
        axes.plot(epochs, values, style, color=colour, label=label, marker="." if len(rows) < 20 else None)
    for axes, label in ((losses, "loss (nats)"), (shares, "share (%)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        if rows:
            axes.legend()
    return figure
