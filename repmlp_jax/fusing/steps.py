"""The steps of folding: each changes the layers of a model, given by their numbers, as a pure function of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing import geometry
from repmlp_jax.fusing.algebra import fusing_dtype, of_one_dtype, scale_and_shift, widened
from repmlp_jax.fusing.folded import FoldedBranch, FoldedNorm
from repmlp_jax.fusing.marks import is_affine, is_norm, layers_of
from repmlp_jax.fusing.modules import walk_modules


@dataclasses.dataclass(frozen=True)
class FoldAfter:
    """Folds the norm after a convolution or FC into it."""

    layer: int
    norm: int

    def apply(self, layers: list[Any]):
        """Changes the layers."""
        layer, norm = layers[self.layer], layers[self.norm]
        fold = _fold_after(_outputs(layer), getattr(layer, "transpose_kernel", False))
        kernel, bias = _stacked(fold, stack_of(norm))(layer.kernel[...], _bias(layer), norm)
        _set(layer, kernel, bias)
        layers[self.norm] = FoldedNorm(norm)


@dataclasses.dataclass(frozen=True)
class FoldBefore:
    """Folds a norm into the layers after it."""

    norm: int
    layers: tuple[int, ...]

    def apply(self, layers: list[Any]):
        """Changes the layers."""
        norm = layers[self.norm]
        for number in self.layers:
            layer = layers[number]
            if is_norm(layer):
                _fold_into_norm(layer, norm)
                continue
            fold = _fold_before(geometry.groups_of(layer), _outputs(layer))
            kernel, bias = _stacked(fold, stack_of(norm))(layer.kernel[...], _bias(layer), norm)
            _set(layer, kernel, bias)
        layers[self.norm] = FoldedNorm(norm)


@dataclasses.dataclass(frozen=True)
class AddBranches:
    """Adds convolutions, and norms, of one input to the largest convolution beside them."""

    target: int
    members: tuple[int, ...]

    def apply(self, layers: list[Any]):
        """Changes the layers."""
        target = layers[self.target]
        members = [layers[number] for number in self.members]
        groups = groups_together([target, *members])
        axes = len(geometry.axes_of(target))
        places = tuple(tuple(map(tuple, geometry.taps_within(member, target))) for member in members)
        add = _add(axes, tuple(map(geometry.groups_of, (target, *members))), groups, places)
        arrays = [(layer, None) if is_norm(layer) else (layer.kernel[...], _bias(layer)) for layer in members]
        kernel, bias = _stacked(add, stack_of(target))(target.kernel[...], _bias(target), arrays)
        _set(target, kernel, bias)
        if hasattr(target, "feature_group_count"):
            target.feature_group_count = groups
            target.kernel_shape = kernel.shape[stack_of(target) :]
        for number in self.members:
            layers[number] = FoldedBranch(layers[number])


Step = FoldAfter | FoldBefore | AddBranches


def fold(model: nnx.Module, steps: Sequence[Step]) -> nnx.Module:
    """A copy of a model with the steps done; it works under JAX's transformations."""
    model = nnx.clone(model)
    before = [layer for _, layer in layers_of(model)]
    after = list(before)
    for step in steps:
        step.apply(after)
    replaced = {id(old): new for old, new in zip(before, after, strict=True) if new is not old}
    return walk_modules(model, lambda node: id(node) in replaced, lambda _, node: replaced[id(node)])


def groups_together(layers: Sequence[Any]) -> int:
    """The groups of the sum of convolutions; norms take any groups."""
    return math.gcd(*(geometry.groups_of(layer) for layer in layers if is_affine(layer)))


def stack_of(layer: Any) -> int:
    """The number of leading axes of a stack of layers."""
    if is_norm(layer):
        return layer.mean.ndim - 1
    if hasattr(layer, "kernel_size"):
        return layer.kernel.ndim - len(layer.kernel_size) - 2
    return layer.kernel.ndim - len(_inputs(layer)) - len(_outputs(layer))


def _inputs(layer) -> tuple[int, ...]:
    return layer.in_features if isinstance(layer.in_features, tuple) else (layer.in_features,)


def _outputs(layer) -> tuple[int, ...]:
    return layer.out_features if isinstance(layer.out_features, tuple) else (layer.out_features,)


# Of functions that are jitted there is one for each way to fold, so that equal layers are compiled once.


def _stacked(function: Callable, stack: int) -> Callable:
    function = jax.jit(function)
    for _ in range(stack):
        function = jax.vmap(function)
    return function


@functools.cache
def _fold_after(outputs, transposed):
    def fold(kernel, bias, norm):
        scale, shift = scale_and_shift(norm)
        kernel, scale, shift = of_one_dtype(kernel, scale, shift)
        # A transposed convolution may have its kernel as that of the convolution it transposes.
        along = scale[:, None] if transposed else scale
        scale, shift = (jnp.broadcast_to(values, outputs) for values in (scale, shift))
        bias = shift if bias is None else bias.astype(shift.dtype) * scale + shift
        return kernel * _with_axes(along, kernel.ndim), bias

    return fold


@functools.cache
def _fold_before(groups, outputs):
    features = math.prod(outputs)

    def fold(kernel, bias, norm):
        scale, shift = scale_and_shift(norm)
        kernel, scale, shift = of_one_dtype(kernel, scale, shift)
        flat = kernel.reshape(-1, scale.size // groups, features)  # taps or pixels, channels of a group, outputs

        def of_each_group(values):
            return jnp.repeat(values.reshape(groups, -1).T, features // groups, axis=1)[None]

        shifted = jnp.sum(flat * of_each_group(shift), (0, 1)).reshape(outputs)
        folded = (flat * of_each_group(scale)).reshape(kernel.shape)
        return folded, (shifted if bias is None else bias.astype(shifted.dtype) + shifted)

    return fold


@functools.cache
def _add(axes, groups_of, groups, places):
    def add(kernel, bias, members):
        kernel = geometry.with_groups(widened(kernel), groups_of[0], groups)
        bias = jnp.zeros(kernel.shape[-1], kernel.dtype) if bias is None else bias.astype(kernel.dtype)
        for (other, other_bias), own_groups, taps in zip(members, groups_of[1:], places, strict=True):
            if is_norm(other):
                scale, other_bias = scale_and_shift(other)
                identity = geometry.identity_kernel(scale.size, groups, axes, scale.dtype)
                other = identity * _with_axes(scale, identity.ndim)
            else:
                other = geometry.with_groups(widened(other), own_groups, groups)
            kernel = geometry.add_kernel(kernel, other, taps)
            bias = bias if other_bias is None else bias.astype(kernel.dtype) + other_bias.astype(kernel.dtype)
        return kernel, bias

    return add


@functools.cache
def _fold_norms(epsilon):
    def fold(scale, bias, mean, var, norm):
        inner_scale, inner_shift = scale_and_shift(norm)
        dtype = jnp.result_type(inner_scale, fusing_dtype(mean.dtype))
        mean, var, inner_scale, inner_shift = (a.astype(dtype) for a in (mean, var, inner_scale, inner_shift))
        scale = jnp.ones_like(mean) if scale is None else scale.astype(dtype)
        bias = jnp.zeros_like(mean) if bias is None else bias.astype(dtype)
        # scale * (inner_scale * x + inner_shift - mean) / deviation + bias, as a norm of x with the same mean
        factor = scale * jax.lax.rsqrt(var + epsilon)
        return scale * inner_scale, bias + factor * (mean * inner_scale + inner_shift - mean)

    return fold


def _fold_into_norm(layer, norm):
    parameters = [None if p is None else p[...] for p in (layer.scale, layer.bias)]
    folded = _stacked(_fold_norms(layer.epsilon), stack_of(norm))(*parameters, layer.mean[...], layer.var[...], norm)
    kept = next((p for p in (layer.scale, layer.bias) if p is not None), None)
    dtype = layer.mean[...].dtype if kept is None else kept[...].dtype
    for name, value in zip(("scale", "bias"), folded, strict=True):
        _replace(layer, name, value, dtype, like=getattr(layer, name))
        if hasattr(layer, f"use_{name}"):
            setattr(layer, f"use_{name}", True)


def _with_axes(array, axes):
    """The array with axes of size 1 before its own."""
    return array.reshape((1,) * (axes - array.ndim) + array.shape)


def _bias(layer):
    return None if layer.bias is None else layer.bias[...]


def _set(layer, kernel, bias):
    dtype = layer.kernel[...].dtype
    _replace(layer, "bias", bias, dtype if layer.bias is None else layer.bias[...].dtype, like=layer.bias)
    _replace(layer, "kernel", kernel, dtype, like=layer.kernel)
    layer.use_bias = True


def _replace(layer, name, value, dtype, like):
    """Sets a variable to a new one, since the arrays of a copied model are shared with the given one."""
    value = value.astype(dtype)
    setattr(layer, name, nnx.Param(value) if like is None else like.replace(value))
