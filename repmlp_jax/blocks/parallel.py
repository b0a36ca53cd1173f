"""Parallel convolutions, each with a norm after it, as one convolution."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.linear import canonicalize_padding
from jax import lax

from repmlp_jax.blocks.layers import with_kernel
from repmlp_jax.fusing import algebra
from repmlp_jax.fusing.algebra import Norm


def add_convolutions(convolutions: Sequence[tuple[nnx.Conv, Norm]], *, identity: Norm | None = None) -> nnx.Conv:
    """The convolution that equals, in evaluation mode, the sum of several on the same input.

    Args:
        convolutions: each convolution and the norm after it. Biases of convolutions are folded in, too.
        identity: the norm of a branch without a convolution, which adds its input.

    Returns:
        A copy of the convolution with the largest kernel, with the sum of all kernels and a bias.

    Raises:
        TypeError: if a layer is no `nnx.Conv`.
        ValueError: if the sum is no convolution of the largest kernel's size: strides, groups, channels or dilations
            differ, or the padding does not put the middles of all kernels on the same pixels. ("SAME" at stride 2 does
            not: it pads by an amount that depends on the kernel and the map.)
    """
    for conv, _ in convolutions:
        if not isinstance(conv, nnx.Conv):
            raise TypeError(f"add_convolutions takes pairs of an nnx.Conv and its norm, not of a {type(conv).__name__}")
        if conv.mask is not None:
            raise ValueError("add_convolutions: a convolution has a mask; multiply it into its kernel")
    if not convolutions:
        raise ValueError("add_convolutions: there are no convolutions to add")
    largest, _ = max(convolutions, key=lambda pair: sum(pair[0].kernel_size))
    for conv, _ in convolutions:
        _check_agrees(conv, largest)
    folded = [_folded(conv, norm) for conv, norm in convolutions]
    if identity is not None:
        folded.append(algebra.fold_norm(_identity_kernel(largest), identity))
    kernels, biases = zip(*folded, strict=True)
    return with_kernel(largest, algebra.add_kernels(kernels), sum(biases))


def _folded(conv, norm):
    kernel, bias = algebra.fold_norm(conv.kernel[...], norm)
    if conv.bias is not None:
        scale, _ = algebra.scale_and_shift(norm)
        bias = bias + conv.bias[...].astype(bias.dtype) * scale.astype(bias.dtype)
    return kernel, bias


def _identity_kernel(conv):
    """The kernel of a 1×1 convolution that hands every channel on: in each group, an identity."""
    sides, strides = len(conv.kernel_size), _each(conv, conv.strides)
    ones = (1,) * sides
    if conv.in_features != conv.out_features or strides != ones:
        raise ValueError(
            f"add_convolutions: an identity keeps channels and size, which a convolution of strides {strides} from "
            f"{conv.in_features} to {conv.out_features} channels does not"
        )
    if any(pads != (dilation * (side - 1) / 2,) * 2 for pads, side, dilation in _geometry(conv)):
        raise ValueError(f"add_convolutions: padding {conv.padding!r} is not that of a map that keeps its size")
    inputs = conv.in_features // conv.feature_group_count
    eye = jnp.eye(inputs, dtype=conv.kernel[...].dtype)
    return jnp.tile(eye, conv.feature_group_count).reshape(*ones, inputs, conv.out_features)


def _check_agrees(conv, largest):
    for name in ("in_features", "out_features", "feature_group_count"):
        if getattr(conv, name) != getattr(largest, name):
            found = getattr(conv, name), getattr(largest, name)
            raise ValueError(f"add_convolutions: {name} is {found[0]} in one convolution and {found[1]} in another")
    for name in ("strides", "input_dilation"):
        one, other = _each(conv, getattr(conv, name)), _each(largest, getattr(largest, name))
        if one != other:
            raise ValueError(f"add_convolutions: {name} are {one} in one convolution and {other} in another")
    modes = {_mode(one) for one in (conv, largest) if any(pads != (0, 0) for pads, *_ in _geometry(one))}
    if len(modes) > 1 or not all(map(_meets, _geometry(conv), _geometry(largest))):
        raise ValueError(
            f"add_convolutions: a {_size(conv)} kernel with padding {conv.padding!r} and dilation "
            f"{_each(conv, conv.kernel_dilation)} does not meet a {_size(largest)} kernel with padding "
            f"{largest.padding!r} and dilation {_each(largest, largest.kernel_dilation)} at strides "
            f"{_each(conv, conv.strides)}: pad each by dilation * (side // 2), which puts their middles on the same "
            f"pixels for maps of any size"
        )


def _meets(one, largest) -> bool:
    """Whether a kernel, put in the middle of the largest, falls on the same pixels along an axis."""
    (pads, side, dilation), (outer_pads, outer, outer_dilation) = one, largest
    if isinstance(pads, str) or isinstance(outer_pads, str):
        return one == largest
    if (outer - side) % 2 or outer < side or (side > 1 and dilation != outer_dilation):
        return False
    margin = outer_dilation * (outer - side) // 2
    return tuple(pad - margin for pad in outer_pads) == pads


def _geometry(conv) -> list[tuple]:
    """Padding (before, after), side and dilation along each axis; a padding that depends on the map is its name."""
    strides, dilations = _each(conv, conv.strides), _each(conv, conv.kernel_dilation)
    padding = canonicalize_padding(conv.padding, len(conv.kernel_size))
    pads = [
        _named_padding(padding, dilation * (side - 1), stride) if isinstance(padding, str) else tuple(padding[axis])
        for axis, (side, dilation, stride) in enumerate(zip(conv.kernel_size, dilations, strides, strict=True))
    ]
    return list(zip(pads, conv.kernel_size, dilations, strict=True))


def _named_padding(name, reach, stride):
    if name in ("CIRCULAR", "REFLECT"):
        return reach // 2, (reach + 1) // 2
    if name == "CAUSAL":
        return reach, 0
    if name.startswith("SAME") and stride > 1 and reach:
        return name
    return tuple(lax.padtype_to_pads((reach + 1,), (reach + 1,), (1,), name)[0])


def _mode(conv):
    return conv.padding if conv.padding in ("CIRCULAR", "REFLECT") else "zeros"


def _each(conv, value) -> tuple[int, ...]:
    value = 1 if value is None else value
    return (value,) * len(conv.kernel_size) if isinstance(value, int) else tuple(value)


def _size(conv) -> str:
    return "×".join(map(str, conv.kernel_size))
