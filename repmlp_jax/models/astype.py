"""A model in another dtype."""

import json
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from repmlp_jax.fusing.algebra import fusing_dtype
from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.fuse import check_concrete, check_module
from repmlp_jax.models.arguments import DTYPES
from repmlp_jax.models.precision import check_precision
from repmlp_jax.models.state import arrays_of
from repmlp_jax.quantisation.quantise import is_quantised


def astype(model: nnx.Module, dtype: DTypeLike) -> nnx.Module:
    """Returns a model that has its parameters, and computes, in another dtype.

    A model of `dtype=jnp.bfloat16` casts its float32 parameters in every call. `astype(fuse_params(model),
    jnp.bfloat16)` casts them once: its outputs are the same bits, and it needs half the memory. Running statistics stay
    in float32 or wider. The given model is not changed. The result can be saved.

    Args:
        model: any NNX module, fused or not.
        dtype: a floating-point dtype.

    Raises:
        TypeError: if `model` is not an NNX module or is abstract, or `dtype` is not a floating-point dtype.
        ValueError: if the model is quantised, a value becomes infinite in `dtype`, or `dtype` has 64 bits, which JAX
            has turned off.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, astype, fuse_params
        >>> block = RepMLP(4, 4, image_size=(6, 6), partition_size=(3, 3), rngs=nnx.Rngs(0))
        >>> astype(fuse_params(block), jnp.bfloat16)(jnp.ones((1, 6, 6, 4))).dtype
        dtype(bfloat16)
    """
    check_module(model, "astype")
    check_concrete(model, "astype", "; nnx.eval_shape takes abstract models")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"astype: dtype={jnp.dtype(dtype).name} is not a floating-point dtype")
    check_precision([dtype], "astype")
    if is_quantised(model):
        raise ValueError(f"astype: this {type(model).__name__} is quantised: cast it before quantise_params")
    dtype = jnp.dtype(dtype)
    copy: Any = nnx.clone(model)
    for _, node in nnx.iter_graph(copy):
        if isinstance(node, nnx.Param | nnx.BatchStat) and jnp.issubdtype(node.dtype, jnp.floating):
            node.set_value(node.get_value().astype(dtype if isinstance(node, nnx.Param) else fusing_dtype(dtype)))
        elif isinstance(node, nnx.Module):
            for name in DTYPES:
                if hasattr(node, name):
                    setattr(node, name, dtype)
    if isinstance(arguments := getattr(copy, "arguments", None), str):
        known = json.loads(arguments)
        copy.arguments = json.dumps(known | {name: dtype.name for name in DTYPES if name in known})
    check_finite(arrays_of(copy), f"astype: in {dtype.name} this {type(model).__name__}")
    return copy
