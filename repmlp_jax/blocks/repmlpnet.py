"""What trains in RepMLPNet (arXiv 2112.11081): a block whose Global Perceptron is a gate and whose FC3 is shared."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.fused_gated import FusedRepMLPNetBlock, Gate, share, shared_fc, unshare
from repmlp_jax.blocks.initializers import kernel_init, shared_kernel_init
from repmlp_jax.blocks.layers import BatchNorm, ConvBN, check_groups
from repmlp_jax.blocks.partition import Partitioning
from repmlp_jax.fusing import algebra


class RepMLPNetBlock(nnx.Module):
    """RepMLPNet's block: FC3 and convolutions that channels share, times a gate that sees the whole map (Section 3).

    Channel c uses the share-set c mod S. Each share-set has one (h·w)×(h·w) matrix and one kernel of each size, for
    all its channels and partitions. Maps may have any size that the partitions divide.

    Args:
        features: channels C, of input and output.
        partition_size: (h, w) of a partition.
        conv_kernels: odd sides of the Local Perceptron's kernels; () for none.
        reduction: factor by which the gate has fewer hidden features than C.
        sharesets: number S of share-sets, which divides C.
        pad: zero-pad maps that partitions do not divide, and crop the output.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the share-sets do not divide the channels, a kernel is even, or `reduction` leaves no hidden
            feature.
    """

    def __init__(
        self,
        features: int,
        *,
        partition_size: tuple[int, int],
        conv_kernels: Sequence[int] = (1, 3),
        reduction: int = 4,
        sharesets: int = 1,
        pad: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_groups(sharesets, features)
        if not 1 <= reduction <= features:
            raise ValueError(f"reduction={reduction} leaves no hidden feature of {features}: use 1 to {features}")
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        fc: Callable[..., nnx.Linear] = functools.partial(nnx.Linear, kernel_init=kernel_init, **options)
        self.features = features
        self.partition_size = tuple(partition_size)
        self.sharesets = sharesets
        self.pad = pad
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.gate = Gate(fc(features, features // reduction), fc(features // reduction, features))
        shape = (sharesets, *self.partition_size, *self.partition_size)
        self.kernel = nnx.Param(shared_kernel_init(rngs.params(), shape, param_dtype))
        self.norm = BatchNorm((sharesets, 1, 1, 1), dtype=dtype, param_dtype=param_dtype)
        self.local_perceptron: nnx.Dict[ConvBN] = nnx.Dict(
            {f"{k}x{k}": ConvBN(sharesets, sharesets, k, groups=sharesets, **options) for k in conv_kernels}
        )

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the block.

        Raises:
            ValueError: if the partitions do not divide the map, or the channels are not `features`.
        """
        partitioning = Partitioning(x.shape[1:3], self.partition_size, self.pad)
        partitioning.check(x, self.features)
        x, kernel = promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        shared = share(partitioning.split(x), self.sharesets)
        y = self.norm(shared_fc(shared, kernel))
        for conv in self.local_perceptron.values():
            y = y + jnp.moveaxis(conv(jnp.moveaxis(shared, 0, -1)), -1, 0)
        return partitioning.join(unshare(y, self.features)) * self.gate(x)

    def fused(self) -> FusedRepMLPNetBlock:
        """The same as the gate and one FC without norms and convolutions."""
        kernel, bias = _fuse_fc3(self.kernel[...], self.norm, list(self.local_perceptron.values()))
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
        """Where each batch norm and each convolution goes."""
        convs = {f"local_perceptron.{size}": "conv and norm added to fc3" for size in self.local_perceptron}
        return {"norm": "folded into fc3", **convs}


@jax.jit
def _fuse_fc3(kernel, norm, local_perceptron):
    sharesets, h, w = kernel.shape[:3]
    scale, shift = algebra.scale_and_shift(norm)
    fused = algebra.widened(kernel) * scale[..., None]
    bias = jnp.broadcast_to(shift[:, 0], (sharesets, h, w))
    if local_perceptron:
        convs = [(conv.conv.kernel[...], conv.norm) for conv in local_perceptron]
        conv_kernel, conv_bias = algebra.merge_convolutions(convs)
        fused += algebra.conv_to_fc(conv_kernel, (h, w), sharesets).reshape(kernel.shape)
        bias += conv_bias.reshape(sharesets, 1, 1)
    return fused, bias
