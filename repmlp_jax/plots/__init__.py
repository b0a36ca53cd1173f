"""Pictures. Each function returns a new matplotlib Figure; `figure.savefig` writes it to a file."""

from repmlp_jax.extras import name_extra

with name_extra():
    from repmlp_jax.plots.bars import fuse_bars
    from repmlp_jax.plots.confusion import confusion_matrix
    from repmlp_jax.plots.curves import learning_curves, read_rows, roc_curve
    from repmlp_jax.plots.identity import identity_trick
    from repmlp_jax.plots.kernels import fc3_kernels, fc3_parts, receptive_fields
    from repmlp_jax.plots.model_kernels import plot_kernels
    from repmlp_jax.plots.palette import BLUE, ORANGE, OTHERS, SIGNED

__all__ = [
    "BLUE",
    "ORANGE",
    "OTHERS",
    "SIGNED",
    "confusion_matrix",
    "fc3_kernels",
    "fc3_parts",
    "fuse_bars",
    "identity_trick",
    "learning_curves",
    "plot_kernels",
    "read_rows",
    "receptive_fields",
    "roc_curve",
]
