"""The report of fusing, with a row for the official code's conversion."""

from flax import nnx

from repmlp_jax.fusing.report import FuseReport, report
from repmlp_jax.interop.torch import deployed


def fuse_report(model: nnx.Module, input_shape: tuple[int, int, int] | None = None) -> FuseReport:
    """Lists for every block what fusing folds, what it keeps and why, and parameters and MACs before and after.

    It computes nothing and also takes abstract models. `print` shows it as a table.

    Args:
        model: any NNX module.
        input_shape: (height, width, channels) of an image; None: `model.input_shape`, or the input shape of a block.
            If neither exists, multiply-accumulates are None.

    Raises:
        TypeError: if `model` is not an NNX module, or a class overrides `__call__` but not `fused()`.
        ValueError: if `input_shape` is not three positive integers.

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
