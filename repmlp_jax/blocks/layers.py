"""The layers of the blocks: batch norm, grouped convolution, convolution with batch norm, grouped FC."""

import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import constant, kernel_init
from repmlp_jax.blocks.operations import convolve_parts, grouped_convolution
from repmlp_jax.blocks.resampling import beside_each_other
from repmlp_jax.blocks.sharesets import convolve_sharesets, with_channels_of_sets
from repmlp_jax.blocks.split_maps import convolve_partitions, multiply_pixels
from repmlp_jax.blocks.statistics import mean_and_variance, of_all
from repmlp_jax.fusing import algebra
from repmlp_jax.fusing.arguments import Pair, Sizes, checked, pair, sizes

Layer = TypeVar("Layer", nnx.Conv, nnx.Linear, nnx.LinearGeneral)


class BatchNorm(nnx.Module):
    """Batch normalisation with an unbiased running variance, as in the official code.

    The shape of its parameters, aligned to the right with the input's, determines the axes of the statistics: those
    where it is 1 or absent. `(C,)` is the usual norm of (N, H, W, C).

    Inputs are normalised with the biased variance. Under `jit` with a sharded batch the statistics are those of the
    whole batch.

    Args:
        shape: shape of scale, bias and the running statistics.
        epsilon: added to the variance.
        momentum: share of the old running statistics that a training step keeps (0.9 is PyTorch's 0.1).
        dtype: dtype of the output; None: that of the input. Statistics are computed in float32 or wider.
        param_dtype: dtype of scale and bias.
    """

    @checked
    def __init__(
        self,
        shape: Sizes,
        *,
        epsilon: float = 1e-5,
        momentum: float = 0.9,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        shape = sizes(shape)
        statistics_dtype = algebra.fusing_dtype(param_dtype)
        self.scale = nnx.Param(constant(1, shape, param_dtype))
        self.bias = nnx.Param(constant(0, shape, param_dtype))
        self.mean = nnx.BatchStat(constant(0, shape, statistics_dtype))
        self.var = nnx.BatchStat(constant(1, shape, statistics_dtype))
        self.batches = nnx.BatchStat(constant(0, (), jnp.int32))
        self.epsilon = epsilon
        self.momentum = momentum
        self.dtype = dtype
        self.use_running_average = False

    def set_view(self, use_running_average: bool | None = None):
        """Sets the mode; called by `nnx.view`."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    @property
    def normalises_last_axis(self) -> bool:
        """Whether it has a value for each channel of the last axis, for `fuse_params(model, example)`."""
        return self.scale.ndim - self.batches.ndim == 1

    def __call__(
        self, x: Float[Array, "..."], shape: Sequence[int] | None = None, *, repeats: int = 1
    ) -> Float[Array, "..."]:
        """Normalises `x`; in training it also updates the running statistics.

        Args:
            x: the input.
            shape: to which the parameters are reshaped, for an input whose features have several axes; None: theirs.
            repeats: how often the parameters are repeated along the last axis, for the channels of share-sets.

        Raises:
            ValueError: in training, if there are fewer than two values for each feature.
        """
        check_single("BatchNorm", self.batches.shape)
        statistics_dtype = self.mean[...].dtype
        shape = tuple(shape or self.scale.shape)
        shape = (1,) * (x.ndim - len(shape)) + shape
        scale, bias = (p[...].astype(statistics_dtype).reshape(shape) for p in (self.scale, self.bias))
        wide = x.astype(statistics_dtype)
        if self.use_running_average:
            mean, var = self.mean[...].reshape(shape), self.var[...].reshape(shape)
        else:
            mean, var = self._batch_statistics(x, shape, repeats)
        scale = scale * lax.rsqrt(var + self.epsilon)
        if not self.use_running_average:
            # The same numbers. The mean has its gradient from the bias's, without a sum over the input of its own.
            mean, change = lax.stop_gradient(mean), mean - lax.stop_gradient(mean)
            bias = bias - change * scale
        mean, scale, bias = (_repeated(p, repeats) for p in (mean, scale, bias))
        y = (wide - mean) * scale + bias
        return y.astype(self.dtype or x.dtype)

    def _batch_statistics(self, x, shape, repeats):
        last = len(shape) - 1  # with repeats, which are averaged afterwards, it is of features even if there is one
        axes = tuple(axis for axis, size in enumerate(shape) if size == 1 and (repeats == 1 or axis < last))
        count = math.prod(x.shape[axis] for axis in axes) * repeats
        if count < 2:
            raise ValueError(
                f"batch norm in training needs at least 2 values a feature, and an input of shape {x.shape} "
                f"has {count}: use a larger batch, or model.eval()"
            )
        mean, var = mean_and_variance(x, axes, _repeated(self.mean[...].reshape(shape), repeats))
        if repeats > 1:
            means, variances = (values.reshape(*shape[:-1], repeats, shape[-1]) for values in (mean, var))
            mean, var = (values.reshape(shape) for values in of_all(means, variances, -2))
        self._update(self.mean, mean)
        self._update(self.var, var * (count / (count - 1)))
        self.batches[...] = self.batches[...] + 1
        return mean, var

    def _update(self, running, value):
        value = lax.stop_gradient(value).reshape(running[...].shape)
        running[...] = self.momentum * running[...] + (1 - self.momentum) * value


def _repeated(parameter, repeats):
    return parameter if repeats == 1 else jnp.tile(parameter, repeats)


def _conv_general_dilated(x, kernel, strides, padding, *, feature_group_count, dimension_numbers, **options):
    del dimension_numbers  # nnx.Conv always uses NHWC and HWIO
    return grouped_convolution(
        x,
        kernel,
        strides=tuple(strides),
        padding=padding if isinstance(padding, str) else tuple(map(tuple, padding)),
        feature_group_count=feature_group_count,
        options=tuple(sorted(options.items())),
    )


_conv_general_dilated.computes_as_usual = True  # type: ignore[attr-defined]  # for `fuse_params(model, example)`


@checked
def conv(
    in_features: int,
    out_features: int,
    kernel_size: Pair,
    *,
    strides: Pair = 1,
    kernel_dilation: Pair = 1,
    padded: bool = True,
    **options,
) -> nnx.Conv:
    """An `nnx.Conv` over NHWC with the official initialisation and padding: k // 2 zeros at each side, or none."""
    kernel_size, strides, dilations = map(pair, (kernel_size, strides, kernel_dilation))
    padding = tuple(
        (size // 2 * dilation if padded else 0,) * 2 for size, dilation in zip(kernel_size, dilations, strict=True)
    )
    options |= dict(strides=strides, kernel_dilation=dilations, padding=padding, kernel_init=kernel_init)
    return nnx.Conv(in_features, out_features, kernel_size, conv_general_dilated=_conv_general_dilated, **options)


class ConvBN(nnx.Module):
    """A convolution without bias, with zero padding k // 2, and its batch norm.

    Args:
        in_features: input channels C.
        out_features: output channels O.
        kernel_size: odd side of the kernel, or (height, width).
        strides: stride in both directions, or (down, across).
        groups: groups of channels, contiguous.
        kernel_dilation: dilation of the kernel, or (down, across).
        padded: whether to pad; without padding the kernel may be even.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if `groups` does not divide both channel counts, or the kernel's side is even.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Pair,
        *,
        strides: Pair = 1,
        groups: int = 1,
        kernel_dilation: Pair = 1,
        padded: bool = True,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_groups(groups, in_features, out_features)
        if padded:
            check_kernel_size(kernel_size)
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        layout: dict[str, Any] = dict(strides=strides, kernel_dilation=kernel_dilation, padded=padded)
        layout |= dict(feature_group_count=groups, use_bias=False)
        self.conv = conv(in_features, out_features, kernel_size, **layout, **options, rngs=rngs)
        self.norm = BatchNorm(out_features, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 O"]:
        """Convolves and normalises."""
        check_single("ConvBN", self.norm.batches.shape)
        return self.norm(self.conv(x))

    def on_partitions(self, x: Float[Array, "N m p g c"], partition_size: tuple[int, int]) -> Float[Array, "N m p g o"]:
        """Convolves each partition of a split map by itself, and normalises."""
        check_single("ConvBN", self.norm.batches.shape)
        y = on_partitions(self.conv, x, partition_size)
        return self.norm(y, y.shape[3:])

    def on_parts(self, maps: Sequence[Float[Array, "N _ _ _"]]) -> Float[Array, "N H W O"]:
        """Convolves and normalises maps beside each other in the channels, enlarged to the size of the first."""
        check_single("ConvBN", self.norm.batches.shape)
        return self.norm(on_parts(self.conv, maps))

    def with_sharesets(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Convolves each channel c with the kernel of share-set c mod S, and normalises each share-set."""
        x, kernel = promote_dtype((x, self.conv.kernel[...]), dtype=self.conv.dtype)
        return self.norm(convolve_sharesets(x, kernel), repeats=x.shape[3] // kernel.shape[3])

    def fused(self) -> nnx.Conv:
        """The equivalent convolution with a bias."""
        kernel, bias = algebra.fold_norm(self.conv.kernel[...], self.norm)
        return with_kernel(self.conv, kernel, bias)

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        return {"norm": "folded into conv"}


class ScaleAndShift(nnx.Module):
    """A scale and a shift for each channel: a norm that cannot be folded into another layer.

    Args:
        scale: factors, (C,).
        shift: summands, (C,).
        dtype: dtype to compute in; None: that of input and parameters.
    """

    def __init__(self, scale: Float[Array, " C"], shift: Float[Array, " C"], dtype: DTypeLike | None = None):
        self.scale = nnx.Param(scale)
        self.shift = nnx.Param(shift)
        self.dtype = dtype

    @classmethod
    def of(cls, norm: BatchNorm) -> "ScaleAndShift":
        """The scale and shift of a norm in evaluation mode."""
        scale, shift = (array.astype(norm.scale.dtype) for array in algebra.scale_and_shift(norm))
        return cls(scale, shift, norm.dtype)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Scales and shifts."""
        x, scale, shift = promote_dtype((x, self.scale[...], self.shift[...]), dtype=self.dtype)
        return x * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)


def with_kernel(layer: Layer, kernel: Array, bias: Array) -> Layer:
    """A copy of a convolution or FC with another kernel and bias, in the dtype of its parameters."""
    copy = nnx.clone(layer)
    # New variables, since NumPy arrays of the clone are shared with the given model.
    copy.kernel = nnx.Param(kernel.astype(layer.param_dtype))
    copy.bias = nnx.Param(bias.astype(layer.param_dtype))
    copy.use_bias = True
    return copy


def with_norm_before(fc: Layer, norm: BatchNorm) -> Layer:
    """A copy of an FC with a bias, with the norm before it folded in; the FC may see several pixels of the norm."""
    assert fc.bias is not None
    return with_kernel(fc, *_fold_norm_before(norm, fc.kernel[...], fc.bias[...]))


@jax.jit  # with the fold, so that neither reshape copies the kernel
def _fold_norm_before(norm, kernel, bias):
    folded, bias = algebra.fold_norm_before(norm, kernel.reshape(-1, norm.scale.size, kernel.shape[-1]), bias)
    return folded.reshape(kernel.shape), bias


def fuse_fc3(
    fc3: tuple[Float[Array | np.ndarray, "groups K J"], BatchNorm] | None,
    convolutions: Sequence[ConvBN],
    partition_size: Sequence[int],
    groups: int,
) -> tuple[Float[Array, "groups K J"], Float[Array, "groups J"]]:
    """Merges FC3 and the parallel convolutions into one FC, in float32 or wider (paper, Section 3.2).

    Args:
        fc3: the kernel and the norm after it, of J or of `groups` features; None: no FC3.
        convolutions: the Local Perceptron.
        partition_size: (h, w) of a partition.
        groups: groups of channels.

    Returns:
        The kernel and the bias.
    """
    kernel, bias = _merge_fc3(fc3, convolutions, pair(partition_size), groups)
    return (_flat(kernel) if convolutions else kernel), bias


# One program, so that it needs little more memory than two copies of the kernel. Its kernel has the axes of
# `conv_to_fc`: XLA takes twice as long on a CPU where the sum is flat in the same program.
@functools.partial(jax.jit, static_argnums=(2, 3))
def _merge_fc3(fc3, convolutions, partition_size, groups):
    kernels, biases = [], []
    if fc3 is not None:
        kernel, norm = fc3
        scale, shift = (array.reshape(groups, 1, -1) for array in algebra.scale_and_shift(norm))
        kernels.append(algebra.widened(kernel) * scale)
        biases.append(jnp.broadcast_to(shift[:, 0], (groups, kernel.shape[2])))
    if convolutions:
        kernel, bias = algebra.merge_convolutions([(conv.conv.kernel[...], conv.norm) for conv in convolutions])
        fc = algebra.conv_to_fc(kernel, partition_size, groups)
        kernels = [*(kernel.reshape(fc.shape) for kernel in kernels), fc]
        biases.append(algebra.fc_bias(bias, partition_size, groups).reshape(groups, -1))
    return sum(kernels), sum(biases)


@functools.partial(jax.jit, donate_argnums=0)
def _flat(kernel: Float[Array, "groups h w c h2 w2 o"]) -> Float[Array, "groups K J"]:
    return kernel.reshape(len(kernel), math.prod(kernel.shape[1:4]), -1)


def by_group(x: Float[Array, "N m p g c"]) -> Float[Array, "g N m K"]:
    """The inputs of FC3: all pixels and channels of a partition within each group."""
    n, m, p, groups, c = x.shape
    return x.transpose(3, 0, 1, 2, 4).reshape(groups, n, m, p * c)


def by_pixel(y: Float[Array, "g N m J"], pixels: int) -> Float[Array, "N m p g o"]:
    """The inverse of `by_group`."""
    groups, n, m, features = y.shape
    return y.reshape(groups, n, m, pixels, features // pixels).transpose(1, 2, 3, 0, 4)


def on_partitions(layer: Any, x: Float[Array, "N m p g c"], partition_size: Sequence[int]) -> Float[Array, "N m p g o"]:
    """Applies a layer, which keeps the size of a map, to each partition of a split map by itself."""
    if is_own(layer, "on_partitions"):
        return layer.on_partitions(x, partition_size)
    n, m, p, groups, c = x.shape
    if not (is_pointwise(layer) or (_is_plain(layer) and layer.feature_group_count == groups)):
        y = layer(x.reshape(n * m, *partition_size, groups * c))
        return y.reshape(n, m, p, groups, y.shape[3] // groups)
    bias = None if layer.bias is None else layer.bias[...]
    x, kernel, bias = promote_dtype((x, layer.kernel[...], bias), dtype=layer.dtype)
    if is_pointwise(layer):
        y = multiply_pixels(x, kernel[0, 0])
    else:
        y = convolve_partitions(x, kernel, tuple(partition_size))
    return y if bias is None else y + bias.reshape(1, 1, 1, *y.shape[3:])


def with_sharesets(layer: Any, x: Float[Array, "N H W C"], sharesets: int) -> Float[Array, "N H W C"]:
    """Applies a layer of S channels, which keeps the size of a map, to each channel c as that of share-set c mod S."""
    if is_own(layer, "with_sharesets"):
        return layer.with_sharesets(x)
    return with_channels_of_sets(layer, x, sharesets)


def on_parts(layer: Any, maps: Sequence[Float[Array, "N _ _ _"]]) -> Float[Array, "N H W O"]:
    """Applies a layer to maps beside each other in its input channels, all enlarged to the size of the first."""
    if is_own(layer, "on_parts"):
        return layer.on_parts(maps)
    if not _is_plain(layer) or layer.feature_group_count > 1:
        return layer(beside_each_other(maps))
    bias = None if layer.bias is None else layer.bias[...]
    *parts, kernel, bias = promote_dtype((*maps, layer.kernel[...], bias), dtype=layer.dtype)
    y = convolve_parts(parts, kernel)
    return y if bias is None else y + bias.reshape(1, 1, 1, -1)


def is_own(layer: Any, method: str) -> bool:
    """Whether the class of a layer itself has a method that stands for its `__call__`.

    A subclass may have another `__call__`, and another norm takes only maps whose channels are one axis.
    """
    return method in vars(type(layer)) and type(getattr(layer, "norm", None)) in (BatchNorm, type(None))


def is_pointwise(layer: Any) -> bool:
    """Whether a layer is a convolution of `conv` that sees one pixel with all its channels."""
    return _is_plain(layer) and layer.kernel_size == (1, 1) and layer.feature_group_count == 1


def _is_plain(layer) -> bool:
    """Whether a layer is a convolution of `conv` with stride 1 and 'same' padding."""
    return (
        type(layer) is nnx.Conv
        and layer.conv_general_dilated is _conv_general_dilated
        and (layer.strides, layer.kernel_dilation) == ((1, 1), (1, 1))
        and layer.padding == tuple((side // 2,) * 2 for side in layer.kernel_size)
        and layer.mask is layer.precision is layer.preferred_element_type is None
    )


def check_single(kind: str, stack: tuple[int, ...]):
    """Raises ValueError if a module is a stack of modules, given the shape of the stack; () is a single module."""
    if stack:
        raise ValueError(
            f"this {kind} is a stack of {' x '.join(map(str, stack))}, as nnx.vmap over a constructor makes it: "
            f"call it within nnx.vmap or nnx.scan over the stack"
        )


def check_groups(groups: int, *channel_counts: int):
    """Raises ValueError unless `groups` divides every channel count, and there are channels."""
    if min(channel_counts) < 1:
        raise ValueError(f"the channels {channel_counts} must be at least 1")
    if groups < 1 or any(channels % groups for channels in channel_counts):
        common = math.gcd(*channel_counts)
        works = [divisor for divisor in range(1, common + 1) if common % divisor == 0]
        raise ValueError(f"groups={groups} does not divide the channels {channel_counts}: use one of {works}")


def check_kernel_size(kernel_size: int | tuple[int, int]):
    """Raises ValueError unless every side of the kernel is odd, so that 'same' padding is symmetric."""
    for side in (kernel_size,) if isinstance(kernel_size, int) else kernel_size:
        if side < 1 or side % 2 == 0:
            raise ValueError(
                f"a kernel of size {kernel_size} has no middle pixel: use an odd size, like "
                f"{max(side - 1, 1)} or {max(side + 1, 3)}"
            )


def check_conv_kernels(sizes: Sequence[int]):
    """Raises ValueError unless all sizes are odd and differ, so that each kernel has its own name."""
    for size in sizes:
        check_kernel_size(size)
    if len(set(sizes)) < len(sizes):
        raise ValueError(f"conv_kernels {tuple(sizes)} names a size twice")
