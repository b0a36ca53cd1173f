"""RepMLPNet's block (arXiv 2112.11081, Section 3): the Global Perceptron is a gate, and channels share FC3."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import kernel_init, shared_kernel_init
from repmlp_jax.blocks.layers import (
    BatchNorm,
    ConvBN,
    check_conv_kernels,
    check_groups,
    check_single,
    fuse_fc3,
    with_sharesets,
)
from repmlp_jax.blocks.partition import Partitioning, check_floating
from repmlp_jax.blocks.sharesets import multiply_sharesets
from repmlp_jax.fusing.arguments import Pair, checked, pair


class Gate(nnx.Module):
    """A factor from 0 to 1 for each channel of the map: average pool, FC1, ReLU, FC2, sigmoid.

    Args:
        fc1: FC from C to the hidden features.
        fc2: FC from the hidden features to C.
    """

    def __init__(self, fc1: nnx.Linear, fc2: nnx.Linear):
        self.fc1 = fc1
        self.fc2 = fc2

    @jax.named_scope("global_perceptron")
    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N 1 1 C"]:
        """The factors of every pixel."""
        return nnx.sigmoid(self.fc2(nnx.relu(self.fc1(x.mean((1, 2), keepdims=True)))))


class RepMLPNetBlock(nnx.Module):
    """RepMLPNet's block: FC3 and convolutions shared between channels, times a gate on the whole map (Section 3).

    Channel c uses share-set c mod S. Each share-set has one (h·w)×(h·w) matrix and one kernel of each size for all its
    channels and partitions. Maps may have any size that the partitions divide.

    Args:
        features: channels C, of input and output.
        partition_size: (h, w) of a partition, or one number for both.
        conv_kernels: odd sides of the Local Perceptron's kernels; () for none.
        reduction: factor by which the gate has fewer hidden features than C.
        sharesets: number S of share-sets; it must divide C.
        pad: zero-pad maps that partitions do not divide, and crop the output.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        TypeError: if an argument is of another type.
        ValueError: if the share-sets do not divide the channels, a kernel is even or repeated, or `reduction` leaves no
            hidden feature.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLPNetBlock
        >>> block = RepMLPNetBlock(8, partition_size=(3, 3), sharesets=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 6, 9, 8))).shape
        (1, 6, 9, 8)
    """

    @checked
    def __init__(
        self,
        features: int,
        *,
        partition_size: Pair,
        conv_kernels: Sequence[int] = (1, 3),
        reduction: int = 4,
        sharesets: int = 1,
        pad: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_groups(sharesets, features)
        check_conv_kernels(conv_kernels)
        if not 1 <= reduction <= features:
            raise ValueError(f"reduction={reduction} leaves no hidden feature of {features}: use 1 to {features}")
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        fc: Callable[..., nnx.Linear] = functools.partial(nnx.Linear, kernel_init=kernel_init, **options)
        self.features = features
        self.partition_size = pair(partition_size)
        self.sharesets = sharesets
        self.pad = pad
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.gate = Gate(fc(features, features // reduction), fc(features // reduction, features))
        pixels = math.prod(self.partition_size)
        self.kernel = nnx.Param(shared_kernel_init(rngs.params(), (sharesets, pixels, pixels), param_dtype))
        self.norm = BatchNorm(sharesets, dtype=dtype, param_dtype=param_dtype)
        self.local_perceptron: nnx.Dict[ConvBN] = nnx.Dict(
            {f"{k}x{k}": ConvBN(sharesets, sharesets, k, groups=sharesets, **options) for k in conv_kernels}
        )

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the block.

        Raises:
            ValueError: if the partitions do not divide the map, or the channels are not `features`.
        """
        check_single("RepMLPNetBlock", self.norm.batches.shape)
        partitioning = _partitioning(x, self.features, self.partition_size, self.pad)
        x, kernel = promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        split = partitioning.split(x)[:, :, :, 0]
        with jax.named_scope("partition_perceptron"):
            y = self.norm(multiply_sharesets(split, kernel), repeats=self.features // self.sharesets)
        with jax.named_scope("local_perceptron"):
            images = split.reshape(-1, *self.partition_size, self.features)
            for conv in self.local_perceptron.values():
                y = y + with_sharesets(conv, images, self.sharesets).reshape(y.shape)
        return partitioning.join(y[:, :, :, None]) * self.gate(x)

    def fused(self) -> "FusedRepMLPNetBlock":
        """The equivalent `FusedRepMLPNetBlock`: the gate and one FC without norms and convolutions."""
        fc3, convolutions = (self.kernel[...], self.norm), list(self.local_perceptron.values())
        kernel, bias = fuse_fc3(fc3, convolutions, self.partition_size, self.sharesets)
        return FusedRepMLPNetBlock(
            self.features,
            self.partition_size,
            self.pad,
            nnx.clone(self.gate),
            kernel.astype(self.param_dtype),
            bias.astype(self.param_dtype),
            self.dtype,
        )

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        convs = {f"local_perceptron.{size}": "conv and norm added to fc3" for size in self.local_perceptron}
        return {"norm": "folded into fc3", **convs}


class FusedRepMLPNetBlock(nnx.Module):
    """The fused block of RepMLPNet, which `RepMLPNetBlock.fused` returns.

    Args:
        features: channels C.
        partition_size: (h, w) of a partition.
        pad: zero-pad maps that partitions do not divide.
        gate: the Global Perceptron.
        kernel: FC3's kernel, (S, h·w, h·w).
        bias: FC3's bias, (S, h·w).
        dtype: dtype to compute in; None: that of input and parameters.
    """

    def __init__(
        self,
        features: int,
        partition_size: tuple[int, ...],
        pad: bool,
        gate: Gate,
        kernel: Float[Array, "S p p"],
        bias: Float[Array, "S p"],
        dtype: DTypeLike | None,
    ):
        self.features = features
        self.partition_size = partition_size
        self.pad = pad
        self.gate = gate
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the block.

        Raises:
            ValueError: if the partitions do not divide the map, or the channels are not `features`.
        """
        partitioning = _partitioning(x, self.features, self.partition_size, self.pad)
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        check_single("FusedRepMLPNetBlock", kernel.shape[:-3])
        with jax.named_scope("partition_perceptron"):
            y = multiply_sharesets(partitioning.split(x)[:, :, :, 0], kernel)
            y = y + jnp.tile(bias.T, self.features // len(kernel))[None, None]
        return partitioning.join(y[:, :, :, None]) * self.gate(x)

    def kernel_by_pixel(self) -> Float[Array, "S h w 1 h2 w2 1"]:
        """FC3's kernel with the axes of `conv_to_fc`; share-sets are groups of one channel."""
        h, w = self.partition_size
        return self.kernel[...].reshape(-1, h, w, 1, h, w, 1)


def _partitioning(x, features, partition_size, pad) -> Partitioning:
    """The partitions of a batch of maps of any size."""
    check_floating(x, "maps")
    if x.ndim != 4 or x.shape[3] != features:
        raise ValueError(
            f"built for maps (N, H, W, C) with C = {features} channels and called with an array of shape {x.shape}"
        )
    return Partitioning(x.shape[1:3], partition_size, pad)
