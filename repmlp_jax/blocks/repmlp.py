"""RepMLP (arXiv 2105.01883, Section 3): the block with its three perceptrons, and the three FCs that it fuses to."""

import dataclasses
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import fc3_init, kernel_init
from repmlp_jax.blocks.layers import (
    BatchNorm,
    ConvBN,
    check_groups,
    check_kernel_size,
    fuse_fc3,
    grouped_fc,
    ungroup,
    with_norm_before,
)
from repmlp_jax.blocks.partition import Partitioning


class GlobalPerceptron(nnx.Module):
    """Lets the partitions see each other: average pool, norm, FC1, ReLU, FC2 (Section 3.1).

    Args:
        features: channels C.
        counts: number of partitions down and across.
        reduction: factor by which the hidden features are fewer than C·down·across.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
    """

    def __init__(self, features, counts, *, reduction=1, dtype=None, param_dtype=jnp.float32, rngs):
        everything = (*counts, features)
        hidden = math.prod(everything) // reduction
        if reduction < 1 or hidden < 1:
            raise ValueError(
                f"reduction={reduction} leaves {hidden} hidden features of {math.prod(everything)}: "
                f"use 1 to {math.prod(everything)}"
            )
        bias_init = nnx.initializers.zeros
        fc = functools.partial(
            nnx.LinearGeneral,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(features, dtype=dtype, param_dtype=param_dtype)
        self.fc1 = fc(everything, hidden, axis=(-3, -2, -1))
        self.fc2 = fc(hidden, everything)

    @jax.named_scope("global_perceptron")
    def __call__(self, x: Float[Array, "N down across h w C"]) -> Float[Array, "N down across C"]:
        """What is added to every pixel of each partition."""
        return self.fc2(nnx.relu(self.fc1(self.norm(x.mean((3, 4))))))

    def fused(self) -> "FusedGlobalPerceptron":
        """The same with the norm folded into FC1."""
        return FusedGlobalPerceptron(with_norm_before(self.fc1, self.norm), nnx.clone(self.fc2))


class PartitionPerceptron(nnx.Module):
    """FC3 from all pixels of a partition to all pixels, group by group of channels, and its norm (Section 3.1).

    Args:
        in_features: channels C.
        out_features: channels O.
        partition_size: (h, w) of a partition.
        groups: groups g of channels.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
    """

    def __init__(
        self, in_features, out_features, partition_size, *, groups=1, dtype=None, param_dtype=jnp.float32, rngs
    ):
        inputs = (*partition_size, in_features // groups)
        outputs = (*partition_size, out_features // groups)
        self.kernel = nnx.Param(fc3_init(rngs.params(), (groups, *inputs, *outputs), param_dtype))
        self.norm = BatchNorm((groups, 1, *outputs), dtype=dtype, param_dtype=param_dtype)
        self.dtype = dtype

    @jax.named_scope("partition_perceptron")
    def __call__(self, x: Float[Array, "M h w C"]) -> Float[Array, "M h w O"]:
        """Applies FC3 and its norm to partitions."""
        x, kernel = promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        return ungroup(self.norm(grouped_fc(x, kernel)))


@dataclasses.dataclass(frozen=True)
class RepMLPConfig:
    """What a RepMLP is configured with wherever it is in a model; it is built with `**vars(config)`, see `RepMLP`."""

    partition_size: tuple[int, int]
    conv_kernels: Sequence[int] = (1, 3, 5)
    groups: int = 1
    reduction: int = 1
    pad: bool = False


class RepMLP(nnx.Module):
    """The RepMLP block: fully-connected layers that train beside convolutions and take them in afterwards.

    The map is cut into partitions. The Global Perceptron adds to each what it learns of all; the Partition
    Perceptron (FC3) and the Local Perceptron (convolutions on each partition alone) see one partition at a time, and
    their sum is the output. There is no activation after it: models put a ReLU there. `fuse_params` turns the block
    into three FCs, exactly.

    Args:
        in_features: input channels C.
        out_features: output channels O.
        image_size: (height, width) of the feature map, the only one the block then accepts.
        partition_size: (h, w) of a partition; that of the map: one partition, and no Global Perceptron.
        conv_kernels: odd sides of the Local Perceptron's kernels, which may exceed the partition; () for none.
        groups: groups of channels of FC3 and of the convolutions.
        reduction: factor by which FC1's output is smaller than its input.
        pad: zero-pad a map that partitions do not divide, and crop the output. Padding takes part in averages
            and in the statistics of the norms, as any other pixel.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the partitions do not divide the map, the groups the channels, a kernel is even or there
            twice, or `reduction` is below 1 or leaves no hidden feature.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP
        >>> block = RepMLP(4, 8, image_size=(6, 6), partition_size=(3, 3), groups=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 6, 6, 4))).shape
        (1, 6, 6, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        image_size: tuple[int, int],
        partition_size: tuple[int, int],
        conv_kernels: Sequence[int] = (1, 3, 5),
        groups: int = 1,
        reduction: int = 1,
        pad: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_groups(groups, in_features, out_features)
        for size in conv_kernels:
            check_kernel_size(size)
        if len(set(conv_kernels)) < len(conv_kernels):
            raise ValueError(f"conv_kernels {tuple(conv_kernels)} names a size twice")
        if reduction < 1:
            raise ValueError(f"reduction={reduction}: FC1 can only reduce its input by 1 or more")
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.in_features = in_features
        self.out_features = out_features
        self.groups = groups
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.partitioning = Partitioning(image_size, partition_size, pad)
        counts = self.partitioning.counts
        self.global_perceptron = nnx.data(
            GlobalPerceptron(in_features, counts, reduction=reduction, **options) if math.prod(counts) > 1 else None
        )
        self.partition_perceptron: PartitionPerceptron | None = nnx.data(
            PartitionPerceptron(in_features, out_features, partition_size, groups=groups, **options)
        )
        self.local_perceptron: nnx.Dict[ConvBN] = nnx.Dict(
            {f"{k}x{k}": ConvBN(in_features, out_features, k, groups=groups, **options) for k in conv_kernels}
        )

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block.

        Raises:
            ValueError: if the map's size or channels are not those that the block was built for.
        """
        self.partitioning.check(x, self.in_features)
        x = self.partitioning.split(x.astype(self.dtype or x.dtype))
        if self.global_perceptron is not None:
            x = x + self.global_perceptron(x)[:, :, :, None, None, :]
        partitions = x.reshape(-1, *x.shape[3:])
        branches = [] if self.partition_perceptron is None else [self.partition_perceptron(partitions)]
        with jax.named_scope("local_perceptron"):
            branches += [conv(partitions) for conv in self.local_perceptron.values()]
        return self.partitioning.join(functools.reduce(operator.add, branches))

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the maps that the block accepts."""
        height, width = self.partitioning.image_size
        return height, width, self.in_features

    def fused(self) -> "FusedRepMLP":
        """The same as three FCs without norms and convolutions (Section 3.2)."""
        perceptron, partition_size = self.partition_perceptron, self.partitioning.partition_size
        kernel, bias = fuse_fc3(
            None if perceptron is None else (perceptron.kernel[...], perceptron.norm),
            list(self.local_perceptron.values()),
            partition_size,
            self.groups,
        )
        inputs = (*partition_size, self.in_features // self.groups)
        outputs = (*partition_size, self.out_features // self.groups)
        return FusedRepMLP(
            self.partitioning,
            self.in_features,
            None if self.global_perceptron is None else self.global_perceptron.fused(),
            kernel.reshape(self.groups, *inputs, *outputs).astype(self.param_dtype),
            bias.reshape(self.groups, *outputs).astype(self.param_dtype),
            self.dtype,
        )

    def folds(self) -> dict[str, str]:
        """Where each batch norm and each convolution goes."""
        places = {}
        if self.global_perceptron is not None:
            places["global_perceptron.norm"] = "folded into fc1"
        if self.partition_perceptron is not None:
            places["partition_perceptron.norm"] = "folded into fc3"
        for size in self.local_perceptron:
            places[f"local_perceptron.{size}"] = "conv and norm added to fc3"
        return places


class FusedGlobalPerceptron(nnx.Module):
    """FC1 and FC2 over the averages of all partitions.

    Args:
        fc1: FC from (down, across, C) to the hidden features.
        fc2: FC from these to (down, across, C).
    """

    def __init__(self, fc1: nnx.LinearGeneral, fc2: nnx.LinearGeneral):
        self.fc1 = fc1
        self.fc2 = fc2

    @jax.named_scope("global_perceptron")
    def __call__(self, x: Float[Array, "N down across h w C"]) -> Float[Array, "N down across C"]:
        """What is added to every pixel of each partition."""
        return self.fc2(nnx.relu(self.fc1(x.mean((3, 4)))))


class FusedRepMLP(nnx.Module):
    """The fused RepMLP block: what `RepMLP.fused` returns.

    Args:
        partitioning: the feature map's size and its partitions.
        in_features: input channels C.
        global_perceptron: FC1 and FC2, or None without a Global Perceptron.
        kernel: FC3's kernel, (g, h, w, C/g, h, w, O/g).
        bias: FC3's bias, (g, h, w, O/g).
        dtype: dtype to compute in; None: that of input and parameters.
    """

    def __init__(
        self,
        partitioning: Partitioning,
        in_features: int,
        global_perceptron: FusedGlobalPerceptron | None,
        kernel: Float[Array, "g h w c h w o"],
        bias: Float[Array, "g h w o"],
        dtype: DTypeLike | None,
    ):
        self.partitioning = partitioning
        self.in_features = in_features
        self.global_perceptron = nnx.data(global_perceptron)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(bias)
        self.dtype = dtype

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block.

        Raises:
            ValueError: if the map's size or channels are not those that the block was built for.
        """
        self.partitioning.check(x, self.in_features)
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        x = self.partitioning.split(x)
        if self.global_perceptron is not None:
            x = x + self.global_perceptron(x)[:, :, :, None, None, :]
        partitions = x.reshape(-1, *x.shape[3:])
        with jax.named_scope("partition_perceptron"):
            y = ungroup(grouped_fc(partitions, kernel) + bias[:, None])
        return self.partitioning.join(y)
