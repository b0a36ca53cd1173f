"""Reading files of PyTorch weights as NumPy arrays, without executing their content."""

import logging
import os
import reprlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from repmlp_jax.extras import name_extra
from repmlp_jax.interop.file_checks import LARGEST_RATIO, check_content, check_zip
from repmlp_jax.interop.plain_keys import with_plain_keys
from repmlp_jax.local_path import local_path

logger = logging.getLogger("repmlp_jax")

PICKLED = (".pth", ".pt", ".tar", ".bin")
NESTED = ("state_dict", "model", "model_state_dict")
DEEPEST = 4  # levels of dictionaries, of which a damaged one may hold itself


def load_torch_file(path: str | os.PathLike, *, entry: str | None = None) -> dict[str, np.ndarray]:
    """Reads a state_dict from a file.

    The file may be a training checkpoint with the state_dict under "state_dict", "model" or "model_state_dict", also
    one under another; where it holds further ones, as those of an averaged model, the log says which is taken. Its
    other entries are ignored. Of the keys, what wrappers add is removed and what is not a weight is ignored, as in
    `from_torch`.

    Damage is seen by the checksums of `torch.save`. Neither `.safetensors` nor the files of PyTorch before 1.6 have
    any: there it is seen if it changes the structure, but not a value.

    Args:
        path: `.safetensors`, or one of `.pth`, `.pt`, `.tar` and `.bin`. The latter are pickles: they need torch (the
            extra `[torch]`) and are read with `torch.load(…, weights_only=True)`, which refuses all but weights.
        entry: the entry of a training checkpoint to take, like "state_dict_ema".

    Returns:
        Key → array, in the dtype of the file; bfloat16 is `ml_dtypes.bfloat16`.

    Raises:
        FileNotFoundError: if there is no such file; IsADirectoryError: if it is a folder.
        ImportError: if the file needs torch and it is not installed.
        TypeError: if `path` is not a path, or `entry` not a name.
        ValueError: if the suffix is not one of these, the file is damaged, it holds anything but weights that NumPy
            has, or it unpacks to more than twice its size; if there is no such entry.
    """
    if not isinstance(entry, str | None):
        raise TypeError(f"entry has to be a name, like 'state_dict_ema', and it is a {type(entry).__name__}")
    path = local_path(path)
    check_content(path)
    if path.suffix == ".safetensors":
        if entry is not None:
            raise ValueError(f"entry={entry!r}: a .safetensors file like {path} holds arrays alone, and no entries")
        return with_plain_keys(_read_safetensors(path))
    if path.suffix not in PICKLED:
        suffixes = ", ".join((".safetensors", *PICKLED))
        raise ValueError(f"{path} ends in {path.suffix or 'no suffix'!r}; load_torch_file reads {suffixes}")
    state_dict = with_plain_keys(_state_dict_in(_unpickle(path), entry, path))
    _check_size(state_dict, path)
    return {key: _to_numpy(key, tensor, path) for key, tensor in state_dict.items()}


def _read_safetensors(path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as file:
            kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
            arrays = {}
            for key, kind in kinds.items():
                try:
                    arrays[key] = file.get_tensor(key)
                except (AttributeError, KeyError, TypeError) as error:
                    raise ValueError(_has_no_numpy(path, key, kind)) from error
            return arrays
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _unpickle(path) -> Any:
    with name_extra():
        import torch
    check_zip(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises any kind of error
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise ValueError(
                f"{path} holds more than weights, which was not executed: {_first_line(error)} Where you trust it, "
                f"load it in PyTorch and save its state_dict alone"
            ) from error
        raise ValueError(f"{path} is damaged or no PyTorch file: {_first_line(error)}") from error


def _state_dict_in(content, entry, path) -> Mapping:
    """The state_dict in what a file holds; `entry` may stand beside the usual names, below or above them."""
    found, taken = content, []
    for _ in range(DEEPEST):
        names = NESTED if entry is None or entry in taken else (entry, *NESTED)
        inner = [name for name in names if isinstance(found, Mapping) and isinstance(found.get(name), Mapping)]
        if not inner:
            break
        name = inner[0]
        others = [key for key, value in found.items() if key != name and _holds_tensors(value)]
        if others and entry is None:
            logger.warning("%s: reading %r, not %r; entry=… (--entry) reads another", path, name, others[0])
        taken.append(name)
        found = found[name]
    holders = [key for key, value in content.items() if _holds_tensors(value)] if isinstance(content, Mapping) else []
    hint = f"; entry={holders[0]!r} takes what is there" if holders else ""
    if entry is not None and entry not in taken:
        raise ValueError(f"{path} has no entry {entry!r}, but {_describe(content)}{hint}")
    if not isinstance(found, Mapping) or not found or not all(map(_is_tensor, found.values())):
        raise ValueError(f"{path} holds no state_dict of tensors, but {_describe(found)}{hint}")
    if unnamed := [key for key in found if not isinstance(key, str)]:
        raise ValueError(f"{path} holds no state_dict: its keys are not names, like {reprlib.repr(unnamed[0])}")
    return found


def _is_tensor(value) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _holds_tensors(value) -> bool:
    for _ in range(DEEPEST):
        if not isinstance(value, Mapping):
            return False
        if any(map(_is_tensor, value.values())):
            return True
        value = next((value[name] for name in NESTED if name in value), None)
    return False


def _check_size(state_dict, path):
    """Refuses views that repeat a small storage: what is not contiguous is copied."""
    size = path.stat().st_size
    sizes = {key: _size_of_copy(tensor) for key, tensor in state_dict.items()}
    if sum(sizes.values()) > LARGEST_RATIO * size:
        key = max(sizes, key=lambda key: sizes[key])
        raise ValueError(
            f"{path} has {size:,} bytes and its arrays {sum(sizes.values()):,}: they are not read. {key}, the largest, "
            f"is a view of shape {tuple(state_dict[key].shape)} that repeats fewer values"
        )


def _size_of_copy(tensor) -> int:
    import torch

    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_contiguous():
        return 0
    return tensor.numel() * tensor.element_size()


def _to_numpy(key, tensor, path) -> np.ndarray:
    import torch

    try:
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        where = "" if tensor.device.type == "cpu" else f" on {tensor.device}"
        raise ValueError(_has_no_numpy(path, key, f"{tensor.dtype}, {tensor.layout}{where}")) from error


def _has_no_numpy(path, key, what) -> str:
    return (
        f"{path} holds {key} as {what}, for which NumPy has no array: in PyTorch make it a dense float32 tensor "
        f"(to_dense, dequantize, float) and save it again"
    )


def _describe(content) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    others = {key: value for key, value in content.items() if not _is_tensor(value)} or content
    parts = [f"{reprlib.repr(key)}: {type(value).__name__}" for key, value in list(others.items())[:5]]
    return "{" + ", ".join(parts) + (", …" if len(others) > 5 else "") + "}"


def _first_line(error) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    return (named or lines or [type(error).__name__])[0][:300]
