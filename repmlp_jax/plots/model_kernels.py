"""A picture of all kernels of a model."""

from typing import Any

import numpy as np
from flax import nnx
from matplotlib.figure import Figure

from repmlp_jax.fusing.folding import selection
from repmlp_jax.fusing.fuse import check_concrete, check_module
from repmlp_jax.fusing.modules import dotted, iterate_nodes
from repmlp_jax.fusing.order import own_order
from repmlp_jax.plots.kernels import FUSED, TRAINED, draw_colour_bar, kernel_by_pixel, scale_of
from repmlp_jax.plots.palette import MAGNITUDES, ZERO

COLUMNS = 6


def plot_kernels(model: nnx.Module, only: Any = None) -> Figure:
    """Draws the kernels of a model that `fuse_params` returned, or of any other.

    Args:
        model: any NNX module.
        only: dotted paths of modules, each with all that it holds, or a filter of NNX, as of `fuse_params`; None:
            everything.

    Returns:
        A figure with a panel for every convolution larger than 1×1 and for FC3 of every RepMLP block, in the order of
        the model's call where that is known. A panel shows the root mean square of the weights over all pairs of
        channels, as a share of the largest; that of FC3 shows what the middle pixel of a partition sees.

    Raises:
        TypeError: if `model` is no NNX module or is abstract, or `only` is of another kind.
        ValueError: if there is no such kernel, `only` chooses no module, or weights are not finite.
    """
    check_module(model, "plot_kernels")
    check_concrete(model, "plot_kernels")
    chosen, order = selection(model, only), own_order(model)
    found: list[tuple[tuple, str, np.ndarray]] = []
    blocks: list[tuple] = []
    for path, node in iterate_nodes(model):
        is_inside = any(path[: len(block)] == block for block in blocks)
        if isinstance(node, FUSED | TRAINED):
            blocks.append(path)
        if not is_inside and chosen(path, node) and (sizes := _sizes(node)) is not None:
            found.append((path, type(node).__name__, sizes))
    if not found:
        part = "" if only is None else f"{only!r} of "
        raise ValueError(
            f"there is no kernel to draw: {part}this {type(model).__name__} holds no "
            f"convolution larger than 1×1 and no RepMLP block"
        )
    found.sort(key=lambda row: order(row[0]))
    columns = min(len(found), COLUMNS)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(1.7 * columns + 1.4, 2 * rows + 0.5), layout="constrained")
    figure.suptitle("Kernels: root mean square of the weights over all pairs of channels")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    # A panel of zeros has no largest weight.
    shares = [sizes / (sizes.max() or 1) for *_, sizes in found]
    norm, extend = scale_of(shares)
    for axes, (path, kind, _), share in zip(panels, found, shares, strict=False):
        image = axes.imshow(np.ma.masked_equal(share, 0), norm=norm, cmap=MAGNITUDES, interpolation="nearest")
        axes.set_facecolor(ZERO)
        axes.set_title(f"{dotted(path)}\n{kind} {'×'.join(map(str, share.shape))}", fontsize="x-small")
        axes.set_xticks([])
        axes.set_yticks([])
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    draw_colour_bar(figure, image, panels, "share of the panel's largest", extend)
    return figure


def _sizes(node) -> np.ndarray | None:
    """Height and width of a kernel, with the root mean square of its weights; None: it is none that sees two pixels."""
    if isinstance(node, TRAINED):
        node = node.fused()
    if isinstance(node, FUSED):
        kernel = kernel_by_pixel(node)
        h, w = kernel.shape[1:3]
        kernel, others = kernel[:, :, :, :, h // 2, w // 2], (0, 3, 4)
    elif isinstance(node, nnx.Conv | nnx.ConvTranspose) and len(node.kernel_size) in (1, 2):
        kernel = np.asarray(node.kernel[...])
        kernel = kernel.astype(np.promote_types(kernel.dtype, np.float32))
        if len(node.kernel_size) == 1:
            kernel = np.expand_dims(kernel, -4)
        # A stack of layers has more axes in front.
        others = (*range(kernel.ndim - 4), kernel.ndim - 2, kernel.ndim - 1)
    else:
        return None
    sizes = np.sqrt(np.square(kernel).mean(others))
    return sizes if sizes.size > 1 else None
