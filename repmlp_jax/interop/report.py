"""The report of fusing, with a row for the official code's conversion."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from repmlp_jax.fusing.arguments import checked
from repmlp_jax.fusing.folding import Folding
from repmlp_jax.fusing.fuse import check_module
from repmlp_jax.fusing.report import FuseReport, report
from repmlp_jax.interop.official_layout import deployed


def fuse_report(
    model: nnx.Module,
    example: Any = None,
    *,
    input_shape: Sequence[int] | None = None,
    call: Callable | None = None,
    only: Any = None,
    dense_groups: bool = False,
) -> FuseReport:
    """Lists what fusing folds, what it keeps and why, and parameters and MACs before and after.

    It computes nothing and also takes abstract models. `print` shows it as a table, a notebook too, and `to_json`
    returns its fields.

    Args:
        model: any NNX module.
        example: as of `fuse_params`, with a row for every norm and branch of the call; or (height, width, channels) of
            an image, three integers, as `input_shape`.
        input_shape: (height, width, channels) of an image; None: `model.input_shape`, or the input shape of a block.
            If neither exists, multiply-accumulates are None.
        call: as of `fuse_params`.
        only: as of `fuse_params`.
        dense_groups: as of `fuse_params`.

    Raises:
        TypeError: if `model` is no NNX module, `input_shape` no three integers, or a class overrides `__call__` but not
            `fused()`.
        ValueError: if `input_shape` is not three positive integers, or the model takes no such image, or not the
            example.

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
    if example is not None and _is_shape(example):
        if input_shape is not None:
            raise ValueError(
                f"fuse_report: input_shape={input_shape} and the shape {example} are both given: leave one out"
            )
        example, input_shape = None, example
    if example is None:
        if call is not None or only is not None or dense_groups:
            raise ValueError("fuse_report: call, only and dense_groups need an example of the call's inputs")
        return _of_blocks(model, input_shape)
    check_module(model, "fuse_report")
    return report(model, folding=Folding.of("fuse_report", example, call, only, dense_groups))


@checked
def _of_blocks(model: nnx.Module, input_shape: Sequence[int] | None = None) -> FuseReport:
    return report(model, input_shape, official=deployed)


def _is_shape(example) -> bool:
    """Whether it is meant as an input shape: it is not an array and holds none, or three integers of NumPy."""
    if isinstance(example, np.ndarray):
        return example.shape == (3,) and np.issubdtype(example.dtype, np.integer)
    arrays = example if isinstance(example, tuple | list) else [example]
    return not any(isinstance(array, jax.Array | jax.ShapeDtypeStruct) or np.ndim(array) > 0 for array in arrays)
