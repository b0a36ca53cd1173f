"""Reading files of PyTorch weights as NumPy arrays, without executing their content."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from repmlp_jax.local_path import local_path

PICKLED = (".pth", ".pt", ".tar", ".bin")
NESTED = ("state_dict", "model", "model_state_dict")


def load_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """Reads a state_dict from a file.

    The file may be a training checkpoint with the state_dict under "state_dict" or "model"; its other entries are
    ignored. The prefix "module.", which data-parallel training adds to every key, is removed.

    Args:
        path: `.safetensors`, or one of `.pth`, `.pt`, `.tar` and `.bin`. The latter are pickles: they need torch (the
            extra `[torch]`) and are read with `torch.load(…, weights_only=True)`, which refuses all but weights.

    Returns:
        Key → array, in the dtype of the file; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: if the file needs torch and it is not installed.
        ValueError: if the suffix is not one of these, the file is damaged, or it holds anything but weights.
    """
    path = local_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            state_dict = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    elif path.suffix in PICKLED:
        state_dict = {key: _to_numpy(tensor) for key, tensor in _unpickle(path).items()}
    else:
        suffixes = ", ".join((".safetensors", *PICKLED))
        raise ValueError(f"{path} ends in {path.suffix or 'no suffix'!r}; load_torch_file reads {suffixes}")
    if all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): array for key, array in state_dict.items()}
    return state_dict


def _unpickle(path) -> Mapping:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f'reading {path} needs PyTorch: pip install "repmlp_jax[torch]" (a .safetensors file does not)'
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises any kind of error
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ValueError(
                f"{path} holds more than weights, which was not executed: {_first_line(error)} Where you trust it, "
                f"load it in PyTorch and save its state_dict alone"
            ) from error
        raise ValueError(f"{path} is damaged or no PyTorch file: {_first_line(error)}") from error
    found = content
    for name in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(isinstance(one, torch.Tensor) for one in found.values()):
        raise ValueError(f"{path} holds no state_dict of tensors, but {_describe(content)}")
    return found


def _to_numpy(tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _describe(content) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    parts = [f"{key!r}: {type(value).__name__}" for key, value in list(content.items())[:5]]
    return "{" + ", ".join(parts) + (", …" if len(content) > 5 else "") + "}"


def _first_line(error) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0][:300]
