"""The residual blocks of RepMLP-ResNet, with and without RepMLP (arXiv 2105.01883, Section 4.2)."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.blocks.operations import computed_once, stored
from repmlp_jax.blocks.repmlp import RepMLP, RepMLPConfig
from repmlp_jax.fusing.arguments import Pair, checked


def _shortcut(in_features, out_features, strides=1, **options):
    """A projection of the input; None if the input already has the shape of the output."""
    if strides == 1 and in_features == out_features:
        return nnx.data(None)
    return ConvBN(in_features, out_features, 1, strides=strides, **options)


def _add_shortcut(block, x, y):
    return computed_once(nnx.relu(y + (x if block.shortcut is None else block.shortcut(x))))


class BaseBlock(nnx.Module):
    """The bottleneck block of ResNet-50, with its stride in the 3×3 convolution.

    Args:
        in_features: input channels.
        mid_features: channels of the 3×3 convolution.
        out_features: output channels.
        strides: stride in both directions.
        dilation: dilation of the 3×3 convolution.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        mid_features: int,
        out_features: int,
        *,
        strides: int = 1,
        dilation: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv1 = ConvBN(in_features, mid_features, 1, **options)
        self.conv2 = ConvBN(mid_features, mid_features, 3, strides=strides, kernel_dilation=dilation, **options)
        self.conv3 = ConvBN(mid_features, out_features, 1, **options)
        self.shortcut = _shortcut(in_features, out_features, strides, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H2 W2 O"]:
        """Applies the block."""
        y = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return _add_shortcut(self, x, self.conv3(y))


class LightBlock(nnx.Module):
    """1×1 convolution, RepMLP, 1×1 convolution: the light block of Section 4.2.

    Args:
        in_features: input channels.
        mid_features: channels of RepMLP.
        out_features: output channels.
        image_size: (height, width) of the feature map, or one number for both.
        partition_size: (h, w) of RepMLP's partitions, or one number for both.
        conv_kernels: odd sides of RepMLP's convolutions.
        groups: groups of channels of RepMLP.
        reduction: factor by which the output of RepMLP's FC1 is smaller than its input.
        pad: zero-pad a map that partitions do not divide.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: as `RepMLP`.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        mid_features: int,
        out_features: int,
        *,
        image_size: Pair,
        partition_size: Pair,
        conv_kernels: Sequence[int] = (1, 3, 5),
        groups: int = 1,
        reduction: int = 1,
        pad: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        config = RepMLPConfig(partition_size, conv_kernels, groups, reduction, pad)
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv1 = ConvBN(in_features, mid_features, 1, **options)
        self.repmlp = RepMLP(mid_features, mid_features, image_size=image_size, **vars(config), **options)
        self.conv3 = ConvBN(mid_features, out_features, 1, **options)
        self.shortcut = _shortcut(in_features, out_features, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block."""
        y = nnx.relu(self.repmlp(nnx.relu(self.conv1(x))))
        return _add_shortcut(self, x, self.conv3(y))


class BottleneckBlock(nnx.Module):
    """1×1, 3×3, RepMLP, 3×3, 1×1: the bottleneck block of Section 4.2, with mid_features // r channels in RepMLP.

    Args:
        in_features: input channels.
        mid_features: channels between the 1×1 convolutions and the 3×3 ones.
        out_features: output channels.
        r: factor by which RepMLP has fewer channels than `mid_features`.
        image_size: (height, width) of the feature map, or one number for both.
        partition_size: (h, w) of RepMLP's partitions, or one number for both.
        conv_kernels: odd sides of RepMLP's convolutions.
        groups: groups of channels of RepMLP.
        reduction: factor by which the output of RepMLP's FC1 is smaller than its input.
        pad: zero-pad a map that partitions do not divide.
        dilation: dilation of the 3×3 convolutions.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if `r` does not divide `mid_features`, and as `RepMLP`.
    """

    @checked
    def __init__(
        self,
        in_features: int,
        mid_features: int,
        out_features: int,
        *,
        r: int,
        image_size: Pair,
        partition_size: Pair,
        conv_kernels: Sequence[int] = (1, 3, 5),
        groups: int = 1,
        reduction: int = 1,
        pad: bool = False,
        dilation: int = 1,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if r < 1 or mid_features % r:
            raise ValueError(f"r={r} does not divide mid_features={mid_features}")
        config = RepMLPConfig(partition_size, conv_kernels, groups, reduction, pad)
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        inner = mid_features // r
        self.conv1 = ConvBN(in_features, mid_features, 1, **options)
        self.conv2 = ConvBN(mid_features, inner, 3, kernel_dilation=dilation, **options)
        self.repmlp = RepMLP(inner, inner, image_size=image_size, **vars(config), **options)
        self.conv4 = ConvBN(inner, mid_features, 3, kernel_dilation=dilation, **options)
        self.conv5 = ConvBN(mid_features, out_features, 1, **options)
        self.shortcut = _shortcut(in_features, out_features, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block."""
        y = nnx.relu(self.conv2(stored(nnx.relu(self.conv1(x)), x.shape[3])))
        y = nnx.relu(self.conv4(nnx.relu(self.repmlp(y))))
        return _add_shortcut(self, x, self.conv5(y))
