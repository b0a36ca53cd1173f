"""How a model was fused with an example, as JSON: from it `load_model` fuses the abstract model in the same way."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.folded import Folding


def folding_of(model: nnx.Module) -> dict[str, Any] | None:
    """The arguments with which `fuse_params` fused a model, as JSON; None if it was given no example.

    Raises:
        TypeError: if the model was fused with a function, which a file cannot hold.
    """
    folding = getattr(model, "folding", None)
    if not isinstance(folding, Folding):
        return None
    start = f"this {type(model).__name__} cannot be saved: it was fused with"
    if folding.call is not None:
        raise TypeError(f"{start} call={folding.call!r}, and a saved model holds no function: give it a __call__")
    only = [folding.only] if isinstance(folding.only, str) else folding.only
    if only is not None and not (isinstance(only, tuple | list) and all(isinstance(path, str) for path in only)):
        raise TypeError(f"{start} only={only!r}, and a saved model holds paths alone: pass those that it selects")
    example = [[list(shape), dtype] for shape, dtype in folding.example]
    return {"example": example, "only": only and list(only), "dense_groups": folding.dense_groups}


def arguments_of_folding(folding: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fuse_params` besides the model, from what `folding_of` returned."""
    example = tuple(jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in folding["example"])
    only = folding["only"]
    return folding | {"example": example, "only": only and tuple(only)}
