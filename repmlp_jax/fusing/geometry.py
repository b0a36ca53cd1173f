"""Where the taps of a convolution fall on its input, and which convolutions of one input add up to one."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.linear import canonicalize_padding
from jax import lax
from jaxtyping import Array, Float

# The padding before and after, as numbers, or the name of one that depends on the size of the map.
Padding = tuple[int, int] | str


def each(layer: Any, value: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """One value for each axis of a convolution's kernel."""
    value = 1 if value is None else value
    return (value,) * len(layer.kernel_size) if isinstance(value, int) else tuple(value)


def axes_of(layer: Any) -> list[tuple[Padding, int, int]]:
    """Padding, side and dilation along each axis of a convolution; [] for an FC or a norm, which see one pixel."""
    if not hasattr(layer, "kernel_size"):
        return []
    strides, dilations = each(layer, layer.strides), each(layer, layer.kernel_dilation)
    padding = canonicalize_padding(layer.padding, len(layer.kernel_size))
    pads: list[Any] = [
        _named_padding(padding, dilation * (side - 1), stride) if isinstance(padding, str) else tuple(padding[axis])
        for axis, (side, dilation, stride) in enumerate(zip(layer.kernel_size, dilations, strides, strict=True))
    ]
    return list(zip(pads, layer.kernel_size, dilations, strict=True))


def _named_padding(name, reach, stride):
    name = name.upper()  # as lax does
    if name in ("CIRCULAR", "REFLECT"):
        return reach // 2, (reach + 1) // 2
    if name == "CAUSAL":
        return reach, 0
    if name.startswith("SAME") and stride > 1 and reach:
        return name
    return tuple(lax.padtype_to_pads((reach + 1,), (reach + 1,), (1,), name)[0])


def padding_mode(layer: Any) -> str | None:
    """What a convolution's padding holds; None: it has none."""
    if all(pads == (0, 0) for pads, *_ in axes_of(layer)):
        return None
    return layer.padding if layer.padding in ("CIRCULAR", "REFLECT") else "zeros"


def output_sizes(layer: Any, sizes: tuple[int, ...]) -> list[int]:
    """The sizes of a convolution's output map."""
    found = []
    for (pads, side, dilation), stride, size in zip(axes_of(layer), each(layer, layer.strides), sizes, strict=True):
        extent = dilation * (side - 1) + 1
        if isinstance(pads, str):
            (pads,) = lax.padtype_to_pads((size,), (extent,), (stride,), pads)
        found.append((size + sum(pads) - extent) // stride + 1)
    return found


def taps_within(layer: Any, target: Any) -> list[list[int]] | str:
    """For each axis, the taps of the target convolution that lie on the layer's; or why there are none.

    Args:
        layer: a convolution, an FC, or a norm, which is a kernel of one tap without padding.
        target: the convolution, or FC, with the larger kernel.
    """
    axes, outer = axes_of(layer), axes_of(target)
    axes = axes or [((0, 0), 1, 1)] * len(outer)
    if len(axes) != len(outer):
        return f"its kernel has {len(axes)} axes, the other {len(outer)}"
    if outer and _strides(layer, len(outer)) != each(target, target.strides):
        return "the strides differ"
    modes = {padding_mode(one) for one in (layer, target)} - {None}
    if len(modes) > 1:
        return "the paddings hold different values"
    found = []
    for (pads, side, dilation), (target_pads, target_side, target_dilation) in zip(axes, outer, strict=True):
        if isinstance(pads, str) or isinstance(target_pads, str):
            if (pads, side, dilation) != (target_pads, target_side, target_dilation):
                return f"padding {pads if isinstance(pads, str) else target_pads!r} with a stride depends on the map"
            found.append(list(range(side)))
            continue
        if sum(pads) - dilation * (side - 1) != sum(target_pads) - target_dilation * (target_side - 1):
            return "the outputs of the convolutions differ in size"
        offsets = [tap * dilation - pads[0] + target_pads[0] for tap in range(side)]
        if any(offset % target_dilation or not 0 <= offset // target_dilation < target_side for offset in offsets):
            return "no kernel covers the taps of the other"
        found.append([offset // target_dilation for offset in offsets])
    return found


def add_kernel(
    kernel: Float[Array, "..."], other: Float[Array, "..."], taps: Sequence[Sequence[int]] | str
) -> Float[Array, "..."]:
    """Adds a kernel to the taps of another that `taps_within` returned, in the wider of their dtypes."""
    assert not isinstance(taps, str), taps
    dtype = jnp.promote_types(kernel.dtype, other.dtype)
    kernel, other = kernel.astype(dtype), other.astype(dtype)
    return kernel.at[jnp.ix_(*map(jnp.array, taps))].add(other) if taps else kernel + other


def _strides(layer, axes):
    return each(layer, layer.strides) if hasattr(layer, "kernel_size") else (1,) * axes


def groups_of(layer: Any) -> int:
    """The groups of a convolution; 1 for an FC."""
    return getattr(layer, "feature_group_count", 1)


def taps_of(layer: nnx.Module) -> int:
    """The number of taps of a convolution; 1 for an FC or a norm."""
    return math.prod(getattr(layer, "kernel_size", ()))


def with_groups(kernel: Float[Array, "... c O"], groups: int, fewer: int) -> Float[Array, "... d O"]:
    """The kernel of a grouped convolution, with zeros, as one of fewer groups, which divide its groups."""
    *sides, inputs, outputs = kernel.shape
    merged = groups // fewer
    blocks = kernel.reshape(*sides, 1, inputs, fewer, merged, outputs // groups)
    places = jnp.eye(merged, dtype=kernel.dtype).reshape(*(1 for _ in sides), merged, 1, 1, merged, 1)
    return (blocks * places).reshape(*sides, merged * inputs, outputs)


def identity_kernel(features: int, groups: int, axes: int, dtype: Any) -> Array:
    """The kernel of a convolution of one tap that returns its input."""
    eye = jnp.eye(features // groups, dtype=dtype)
    return jnp.tile(eye, groups).reshape(*(1,) * axes, features // groups, features)
