"""The report of fusing, with a row for the official code's conversion."""

from collections.abc import Sequence

from flax import nnx

from repmlp_jax.fusing.arguments import checked
from repmlp_jax.fusing.report import FuseReport, report
from repmlp_jax.interop.official_layout import deployed


@checked
def fuse_report(model: nnx.Module, input_shape: Sequence[int] | None = None) -> FuseReport:
    """Lists for every block what fusing folds, what it keeps and why, and parameters and MACs before and after.

    It computes nothing and also takes abstract models. `print` shows it as a table.

    Args:
        model: any NNX module.
        input_shape: (height, width, channels) of an image; None: `model.input_shape`, or the input shape of a block.
            If neither exists, multiply-accumulates are None.

    Raises:
        TypeError: if `model` is no NNX module, `input_shape` no three integers, or a class overrides `__call__` but not
            `fused()`.
        ValueError: if `input_shape` is not three positive integers, or the model takes no such image.

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
    return report(model, input_shape, official=deployed)
