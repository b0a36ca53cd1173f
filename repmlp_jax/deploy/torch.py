"""Weights for PyTorch: a file that the official code can load."""

from pathlib import Path

from flax import nnx
from safetensors.numpy import save_file

from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.fuse import check_concrete
from repmlp_jax.interop.torch import to_torch
from repmlp_jax.storage.whole_file import whole_file


def export_torch(model: nnx.Module, path: str | Path, *, overwrite: bool = False):
    """Writes the weights and statistics of a model as safetensors in the official PyTorch layout.

    A trained model is written in the training-time layout and is not fused. The file is written atomically.
    `from_torch(model, load_torch_file(path))` reads it bit for bit.

    Args:
        model: a module with official weights, as `to_torch` takes it.
        path: the file; missing parents are created. `load_torch_file` requires the suffix `.safetensors`.
        overwrite: replace the file if it exists.

    Raises:
        FileExistsError: if `path` exists and `overwrite` is off.
        TypeError: if the model is not a module, is abstract, or there is no official layout for it or its fused form.
        ValueError: if parameters or statistics are NaN or infinite.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"export needs an nnx.Module, not {type(model).__name__}")
    check_concrete(model, "export")
    with whole_file(path, overwrite) as partial:
        state_dict = to_torch(model)
        check_finite(state_dict, f"the {type(model).__name__} to export")
        save_file(state_dict, partial)
