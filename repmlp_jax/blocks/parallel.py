"""Parallel convolutions, each with a norm after it, as one convolution."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx

from repmlp_jax.blocks.layers import with_kernel
from repmlp_jax.fusing import algebra, geometry
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
        ValueError: if the sum is not a convolution of the largest kernel's size: strides, groups, channels or dilations
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
    kernel, bias = jnp.zeros_like(largest.kernel[...]), jnp.zeros(largest.out_features, largest.kernel.dtype)
    folded = [(conv, *_folded(conv, norm)) for conv, norm in convolutions]
    if identity is not None:
        _check_identity(largest)
        axes, groups = len(largest.kernel_size), largest.feature_group_count
        eye = geometry.identity_kernel(largest.in_features, groups, axes, largest.kernel.dtype)
        folded.append((identity, *algebra.fold_norm(eye, identity)))
    for layer, other, other_bias in folded:
        kernel = geometry.add_kernel(kernel, other, geometry.taps_within(layer, largest))
        bias = bias.astype(other_bias.dtype) + other_bias
    return with_kernel(largest, kernel, bias)


def _folded(conv, norm):
    kernel, bias = algebra.fold_norm(conv.kernel[...], norm)
    if conv.bias is not None:
        scale, _ = algebra.scale_and_shift(norm)
        bias = bias + conv.bias[...].astype(bias.dtype) * scale.astype(bias.dtype)
    return kernel, bias


def _check_identity(conv):
    """Raises ValueError unless a convolution keeps channels and size, as an identity beside it does."""
    strides = geometry.each(conv, conv.strides)
    if conv.in_features != conv.out_features or set(strides) != {1}:
        raise ValueError(
            f"add_convolutions: an identity keeps channels and size, which a convolution of strides {strides} from "
            f"{conv.in_features} to {conv.out_features} channels does not"
        )
    if any(pads != (dilation * (side - 1) / 2,) * 2 for pads, side, dilation in geometry.axes_of(conv)):
        raise ValueError(f"add_convolutions: padding {conv.padding!r} is not that of a map that keeps its size")


def _check_agrees(conv, largest):
    for name in ("in_features", "out_features", "feature_group_count"):
        if getattr(conv, name) != getattr(largest, name):
            found = getattr(conv, name), getattr(largest, name)
            raise ValueError(f"add_convolutions: {name} is {found[0]} in one convolution and {found[1]} in another")
    for name in ("strides", "input_dilation"):
        one, other = (geometry.each(layer, getattr(layer, name)) for layer in (conv, largest))
        if one != other:
            raise ValueError(f"add_convolutions: {name} are {one} in one convolution and {other} in another")
    if isinstance(geometry.taps_within(conv, largest), str):
        raise ValueError(
            f"add_convolutions: a {_size(conv)} kernel with padding {conv.padding!r} and dilation "
            f"{geometry.each(conv, conv.kernel_dilation)} does not meet a {_size(largest)} kernel with padding "
            f"{largest.padding!r} and dilation {geometry.each(largest, largest.kernel_dilation)} at strides "
            f"{geometry.each(conv, conv.strides)}: pad each by dilation * (side // 2), which puts their middles on the "
            f"same pixels for maps of any size"
        )


def _size(conv) -> str:
    return "×".join(map(str, conv.kernel_size))
