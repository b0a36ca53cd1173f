"""Keys of a state_dict without what PyTorch's tools add to them."""

from collections.abc import Mapping
from typing import Any

# torch.compile, FSDP and activation checkpointing wrap modules at any depth.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Data-parallel and averaged models wrap the whole.
OUTER = "module."
# thop's counts of each module, the counters of averaged models in PyTorch and mmengine, and the header of safetensors.
IGNORED = {"total_ops", "total_params", "n_averaged", "steps", "__metadata__"}


def with_plain_keys(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Removes the names of wrappers from keys, and the entries that are `IGNORED`.

    Raises:
        ValueError: if two keys differ by wrappers alone.
    """
    plain: dict[str, Any] = {}
    for key, array in state_dict.items():
        parts = [part for part in key.split(".") if part not in WRAPPERS]
        if parts and parts[-1] in IGNORED:
            continue
        name = ".".join(parts)
        if name in plain:
            raise ValueError(f"the state_dict holds {name!r} twice, once as {key!r}")
        plain[name] = array
    while plain and all(key.startswith(OUTER) for key in plain):
        plain = {key.removeprefix(OUTER): array for key, array in plain.items()}
    return plain
