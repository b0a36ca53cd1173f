"""Refusing parameters and statistics that are NaN or infinite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repmlp_jax.listing import listed


def check_finite(arrays: Mapping[str, Any], what: str):
    """Refuses arrays with NaN or infinite values.

    The outputs of a model need not show them: XLA's CPU compiler returns 0 for `relu(nan)` within some programs.
    Integers, random keys, abstract and traced arrays are skipped; of arrays spread over processes, what this process
    holds is checked.

    Args:
        arrays: name → array.
        what: what holds them, for the message.

    Raises:
        ValueError: names the arrays and counts their values.
    """
    found = {name: broken for name, array in arrays.items() if (broken := _not_finite(array))}
    if found:
        named = listed(f"{name} ({broken:,} of {arrays[name].size:,})" for name, broken in found.items())
        raise ValueError(f"{what} holds values that are NaN or infinite: {named}")


def has_values(array) -> bool:
    """Whether an array is neither abstract nor traced."""
    return isinstance(array, jax.Array | np.ndarray) and not isinstance(array, jax.core.Tracer)


def on_this_process(array) -> np.ndarray:
    """The values on the devices of this process, flat where they are several."""
    if isinstance(array, np.ndarray) or array.is_fully_addressable:
        return np.asarray(array)
    return np.concatenate([np.ravel(shard.data) for shard in array.addressable_shards])


def _not_finite(array) -> int:
    if not has_values(array) or not jnp.issubdtype(array.dtype, jnp.inexact):
        return 0
    values = on_this_process(array)
    if values.dtype.itemsize < 4:
        values = values.astype(np.float32)
    # A sum of squares is finite only if each value is, and the fastest to compute; that of finite values may overflow.
    with np.errstate(all="ignore"):
        flat = np.ravel(values)
        return 0 if np.isfinite(flat @ flat) else int(np.sum(~np.isfinite(flat)))
