"""A picture of which classes a classifier confuses."""

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from repmlp_jax.plots.palette import NUMBERS, ZERO

MOST_NUMBERS, MOST_NAMES = 20, 60  # classes, beyond which the picture has no numbers and no names
LONGEST = 30  # name that is shown in full; much longer ones would leave no room for the matrix


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws how often the images of each class (rows) are predicted as each class (columns), in per cent of the row.

    What never happened stays white; the rows of classes without images are grey.

    Args:
        matrix: counts of images (true classes, predicted classes).
        names: of the classes.

    Raises:
        ValueError: if the matrix is not square, or there is not a name for each class.
    """
    matrix = np.asarray(matrix)
    classes = len(names)
    if matrix.shape != (classes, classes):
        raise ValueError(f"a matrix of shape {matrix.shape} does not fit {classes} names of classes")
    images = matrix.sum(1, keepdims=True)
    shares = np.ma.masked_where(matrix == 0, matrix / np.maximum(images, 1))
    size = min(4 + 0.32 * classes, 14)
    figure = Figure(figsize=(size + 1, size), layout="compressed")
    axes = figure.subplots()
    # The root tells rare confusions apart, too.
    image = axes.imshow(shares, cmap=NUMBERS, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    for row in np.flatnonzero(images == 0):
        axes.axhspan(row - 0.5, row + 0.5, color=ZERO)
    figure.colorbar(image, ax=axes, shrink=0.8, format=PercentFormatter(1), label="share of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if classes <= MOST_NAMES:
        shown = [name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…" for name in names]
        # A dollar is a dollar, and begins no formula.
        axes.set_xticks(range(classes), shown, rotation=90 if max(map(len, shown)) > 2 else 0, parse_math=False)
        axes.set_yticks(range(classes), shown, parse_math=False)
    if classes <= MOST_NUMBERS:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "black" if shares[row, column] > 0.3 else "white"
                axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize="small")
    return figure
