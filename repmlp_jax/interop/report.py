"""The report of fusing, with a row for the official code's conversion."""

import operator
from collections.abc import Sequence
from typing import SupportsIndex

from flax import nnx

from repmlp_jax.fusing.report import FuseReport, report
from repmlp_jax.interop.official_layout import check_module, deployed


def fuse_report(model: nnx.Module, input_shape: Sequence[SupportsIndex] | None = None) -> FuseReport:
    """Lists for every block what fusing folds, what it keeps and why, and parameters and MACs before and after.

    It computes nothing and also takes abstract models. `print` shows it as a table.

    Args:
        model: any NNX module.
        input_shape: (height, width, channels) of an image; None: `model.input_shape`, or the input shape of a block.
            If neither exists, multiply-accumulates are None.

    Raises:
        TypeError: if `model` is no NNX module, or `input_shape` no three whole numbers.
        ValueError: if `input_shape` is not three positive numbers, or the model takes no such image.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, fuse_report
        >>> block = RepMLP(4, 4, image_size=(6, 6), partition_size=(3, 3), groups=2, rngs=nnx.Rngs(0))
        >>> report = fuse_report(block)  # print(report) is a table
        >>> report.parameters  # before and after
        (1576, 1228)
        >>> report.macs
        (13184, 3104)
    """
    check_module(model)
    return report(model, None if input_shape is None else _image_shape(input_shape), official=deployed)


def _image_shape(input_shape) -> tuple[int, int, int]:
    wanted = f"input_shape has to be (height, width, channels), three positive whole numbers, and it is {input_shape!r}"
    try:
        sizes = tuple(map(operator.index, input_shape))
    except TypeError as error:
        raise TypeError(wanted) from error
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(wanted)
    height, width, channels = sizes
    return height, width, channels
