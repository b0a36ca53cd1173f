"""Pictures of a segmentation: classes in their colours over the image, with a legend."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from repmlp_jax.tasks.segmentation.metrics import IGNORED

Palette = Sequence[tuple[int, int, int]]


def overlay(
    image: UInt8[np.ndarray, "H W 3"], classes: Integer[np.ndarray, "H W"], palette: Palette, opacity: float = 0.6
) -> UInt8[np.ndarray, "H W 3"]:
    """Tints each pixel of a picture in the colour of its class; pixels with label 255 stay as they are.

    Args:
        image: in RGB.
        classes: of each pixel, or 255.
        palette: colour (red, green, blue) of each class.
        opacity: share of the class's colour, from 0 to 1.

    Raises:
        ValueError: if sizes differ, a class has no colour, or `opacity` is not between 0 and 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity={opacity} must be from 0 to 1")
    if image.shape != (*classes.shape, 3):
        raise ValueError(f"the picture has shape {image.shape}, the classes {classes.shape}: sizes must agree")
    counts = classes != IGNORED
    strays = np.unique(classes[counts & ((classes < 0) | (classes >= len(palette)))])
    if strays.size:
        raise ValueError(f"classes {strays.tolist()} have no colour: the palette has {len(palette)}")
    colours = np.asarray(palette, np.float32)[np.where(counts, classes, 0)]
    share = np.float32(opacity) * counts[..., None].astype(np.float32)
    return np.rint(image * (1 - share) + colours * share).astype(np.uint8)


def comparison(
    image: UInt8[np.ndarray, "H W 3"],
    truth: Integer[np.ndarray, "H W"],
    prediction: Integer[np.ndarray, "H W"],
    palette: Palette,
    class_names: Sequence[str],
) -> Figure:
    """Draws picture, truth and prediction side by side, with a legend of the classes in either.

    Args:
        image: in RGB.
        truth: class of each pixel, or 255 for a pixel that does not count and stays untinted.
        prediction: class of each pixel.
        palette: colour (red, green, blue) of each class.
        class_names: name of each class.

    Returns:
        A figure; `figure.savefig("….png")` writes it.

    Raises:
        ValueError: as `overlay`.
    """
    pictures = {
        "picture": image,
        "truth": overlay(image, truth, palette),
        "prediction": overlay(image, prediction, palette),
    }
    height, width = truth.shape
    figure = Figure(figsize=(12, 12 / 3 * height / width + 1.0), dpi=150, layout="constrained")
    for axes, (title, picture) in zip(figure.subplots(1, 3), pictures.items(), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(title)
        axes.set_axis_off()
    patches = [
        Patch(facecolor=(np.asarray(palette[index]) / 255).tolist(), label=class_names[index].replace("_", " "))
        for index in np.union1d(truth, prediction)
        if index != IGNORED
    ]
    if (truth == IGNORED).any():
        patches.append(Patch(facecolor="none", edgecolor="grey", label="does not count"))
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), frameon=False)
    return figure
