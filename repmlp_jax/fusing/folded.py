"""What takes the place of layers that `fuse_params(model, example)` folded away."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from repmlp_jax.fusing import geometry


class FoldedNorm(nnx.Module):
    """In the place of a norm that was folded into another layer: returns its input, in the dtype of the norm's output.

    It keeps the attributes of the norm that are not arrays, such as `num_features`.
    """

    def __init__(self, norm: nnx.Module):
        _copy_attributes(norm, self)
        arrays = [leaf.dtype for leaf in (norm.mean[...], norm.var[...])]  # type: ignore[attr-defined]
        arrays += [p[...].dtype for p in (norm.scale, norm.bias) if p is not None]  # type: ignore[attr-defined]
        promotes = isinstance(norm, nnx.BatchNorm)
        self.parameters_dtype = jnp.result_type(*arrays) if promotes else None

    def __call__(
        self, x: Float[Array, "..."], use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Float[Array, "..."]:
        """Returns `x`; the arguments are those of Flax's BatchNorm."""
        del use_running_average, mask
        return x.astype(_dtype(self, x))


class FoldedBranch(nnx.Module):
    """In the place of a layer whose sum with a parallel convolution became part of that: it returns zeros.

    It keeps the attributes of the layer that are not arrays, such as `strides`.
    """

    def __init__(self, layer: nnx.Module):
        _copy_attributes(layer, self)
        kernel = getattr(layer, "kernel", None)
        self.parameters_dtype = None if kernel is None else kernel[...].dtype

    def __call__(self, x: Float[Array, "..."], *arguments: Any, **options: Any) -> Float[Array, "..."]:
        """Zeros in the shape of the layer's output."""
        del arguments, options
        if hasattr(self, "kernel_size"):
            axes = len(self.kernel_size)
            sizes = geometry.output_sizes(self, x.shape[x.ndim - 1 - axes : -1])
            shape = (*x.shape[: x.ndim - 1 - axes], *sizes, self.out_features)  # type: ignore[attr-defined]
        else:
            shape = (*x.shape[:-1], getattr(self, "out_features", x.shape[-1]))
        return jnp.zeros(shape, _dtype(self, x))


def _copy_attributes(layer, place):
    for name, value in vars(layer).items():
        if not name.startswith("_pytree") and not isinstance(value, nnx.Variable):
            setattr(place, name, value)


def _dtype(place, x):
    if place.dtype is not None:
        return place.dtype
    return x.dtype if place.parameters_dtype is None else jnp.promote_types(x.dtype, place.parameters_dtype)
