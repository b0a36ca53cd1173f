"""Pictures of what a model learns. Each function returns a matplotlib Figure that belongs to nobody else."""

from collections.abc import Sequence

from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
BLUE, ORANGE = "#0072B2", "#D55E00"


def learning_curves(rows: Sequence[dict]) -> Figure:
    """Loss and accuracy over the epochs, training beside test.

    Args:
        rows: one dict an epoch with epoch, train_loss, test_loss (nats), train_accuracy and test_accuracy (of 1).
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, name, scale, label in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), ("loss (nats)", "accuracy (%)"), strict=True
    ):
        for split, colour, style in (("train", BLUE, "--"), ("test", ORANGE, "-")):
            values = [row[f"{split}_{name}"] * scale for row in rows]
            axes.plot(epochs, values, style, color=colour, label=split, marker="." if len(rows) < 20 else None)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
