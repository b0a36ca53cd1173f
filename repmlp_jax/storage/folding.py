"""How a model was fused with an example or in part, as JSON: `load_model` fuses the abstract model in the same way."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.folding import Folding


def folding_of(model: nnx.Module) -> dict[str, Any] | None:
    """The arguments with which `fuse_params` made a model, as JSON; None if it was given the model alone.

    Raises:
        TypeError: if a function is among them, which a file cannot hold.
    """
    folding = getattr(model, "folding", None)
    if not isinstance(folding, Folding):
        return None
    start = f"this {type(model).__name__} cannot be saved: it was fused with"
    if folding.call is not None:
        raise TypeError(f"{start} call={folding.call!r}, and a file holds no function: give the class a __call__")
    only = folding.only
    paths = only if isinstance(only, tuple) else (only or "",)
    if not all(isinstance(path, str) for path in paths):
        raise TypeError(f"{start} only={only!r}, and a file holds paths alone: pass those that it selects")
    return {"example": folding.example, "only": only, "dense_groups": folding.dense_groups}


def arguments_of_folding(folding: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fuse_params` besides the model, from what `folding_of` returned or a file gave back."""
    example, only = folding["example"], folding["only"]
    if example is not None:
        example = tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in example)
    return folding | {"example": example, "only": tuple(only) if isinstance(only, list) else only}
