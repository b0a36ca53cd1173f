"""RepMLP (arXiv 2105.01883, Section 3): the block with three perceptrons, and its fused form of three FCs."""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks import layers
from repmlp_jax.blocks.initializers import fc3_init, kernel_init
from repmlp_jax.blocks.partition import Layout, Partitioning
from repmlp_jax.blocks.split_maps import multiply_groups
from repmlp_jax.fusing.arguments import Pair, checked, pair


class GlobalPerceptron(nnx.Module):
    """Connects the partitions: average pool, norm, FC1, ReLU, FC2 (Section 3.1).

    Args:
        features: channels C.
        counts: number of partitions down and across.
        reduction: factor by which the hidden features are fewer than C·down·across.
        dtype, param_dtype, rngs: as of `RepMLP`.
    """

    def __init__(self, features, counts, *, reduction=1, dtype=None, param_dtype=jnp.float32, rngs):
        everything = math.prod(counts) * features
        hidden = everything // reduction
        if reduction < 1 or hidden < 1:
            raise ValueError(
                f"reduction={reduction} leaves {hidden} hidden features of {everything}: use 1 to {everything}"
            )
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        fc: Callable[..., nnx.Linear] = functools.partial(nnx.Linear, kernel_init=kernel_init, **options, rngs=rngs)
        self.norm = layers.BatchNorm(features, **options)
        self.fc1 = fc(everything, hidden)
        self.fc2 = fc(hidden, everything)

    @jax.named_scope("global_perceptron")
    def __call__(self, x: Float[Array, "N m p g c"]) -> Float[Array, "N m 1 g c"]:
        """The values to add to every pixel of each partition."""
        averages = x.mean(2, keepdims=True)
        n, m, _, groups, c = averages.shape
        normalised = self.norm(averages.reshape(n, m, groups * c)).reshape(n, self.fc1.in_features)
        return self.fc2(nnx.relu(self.fc1(normalised))).reshape(averages.shape)

    def fused(self) -> "FusedGlobalPerceptron":
        """The equivalent `FusedGlobalPerceptron`, with the norm folded into FC1."""
        return FusedGlobalPerceptron(layers.with_norm_before(self.fc1, self.norm), nnx.clone(self.fc2))


class PartitionPerceptron(nnx.Module):
    """FC3, which connects all pixels of a partition within each group of channels, and its norm (Section 3.1).

    Args:
        in_features: channels C.
        out_features: channels O.
        partition_size: (h, w) of a partition.
        groups: groups g of channels.
        dtype, param_dtype, rngs: as of `RepMLP`.
    """

    def __init__(
        self, in_features, out_features, partition_size, *, groups=1, dtype=None, param_dtype=jnp.float32, rngs
    ):
        pixels = math.prod(partition_size)
        inputs, outputs = (pixels * features // groups for features in (in_features, out_features))
        self.kernel = nnx.Param(fc3_init(rngs.params(), (groups, inputs, outputs), param_dtype))
        self.norm = layers.BatchNorm((groups, 1, outputs), dtype=dtype, param_dtype=param_dtype)
        self.dtype = dtype

    @jax.named_scope("partition_perceptron")
    def __call__(self, x: Float[Array, "N m p g c"]) -> Float[Array, "N m p g o"]:
        """Applies FC3 and its norm to partitions."""
        layers.check_single("PartitionPerceptron", self.norm.batches.shape)
        x, kernel = promote_dtype((x, self.kernel[...]), dtype=self.dtype)
        y = multiply_groups(layers.by_group(x), kernel)
        return layers.by_pixel(self.norm(y, (len(y), 1, 1, y.shape[3])), x.shape[2])


@dataclasses.dataclass(frozen=True)
class RepMLPConfig:
    """The arguments of `RepMLP` that do not depend on its place in a model; pass them as `**vars(config)`."""

    partition_size: Pair
    conv_kernels: Sequence[int] = (1, 3, 5)
    groups: int = 1
    reduction: int = 1
    pad: bool = False


class RepMLP(nnx.Module):
    """The RepMLP block: fully-connected layers, trained in parallel with convolutions that are merged into them.

    The map is split into partitions. The Global Perceptron adds to each partition values that depend on all of them.
    The Partition Perceptron (FC3) and the Local Perceptron (convolutions) process each partition separately, and their
    sum is the output. The block has no activation after it; models add a ReLU. `fuse_params` turns it into three FCs
    that compute the same function.

    Args:
        in_features: input channels C.
        out_features: output channels O.
        image_size: (height, width) of the feature map, or one number for both; the block accepts no other size.
        partition_size: (h, w) of a partition, or one number for both. If it equals `image_size`, there is no Global
            Perceptron.
        conv_kernels: odd sides of the Local Perceptron's kernels, which may exceed the partition; () for none.
        groups: groups of channels of FC3 and of the convolutions.
        reduction: factor by which FC1's output is smaller than its input.
        pad: zero-pad a map that partitions do not divide, and crop the output. Padding counts in averages and in the
            statistics of the norms.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        TypeError: if a size is not an integer.
        ValueError: if the partitions do not divide the map or the groups the channels, a kernel is even or repeated, or
            `reduction` is below 1 or leaves no hidden feature.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP
        >>> block = RepMLP(4, 8, image_size=(6, 6), partition_size=(3, 3), groups=2, rngs=nnx.Rngs(0))
        >>> block(jnp.ones((1, 6, 6, 4))).shape
        (1, 6, 6, 8)
    """

    @checked
    def __init__(
        self,
        in_features: int,
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
        layers.check_groups(groups, in_features, out_features)
        layers.check_conv_kernels(conv_kernels)
        if reduction < 1:
            raise ValueError(f"reduction={reduction}: FC1 can only reduce its input by 1 or more")
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.in_features = in_features
        self.out_features = out_features
        self.groups = groups
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.partitioning = Partitioning(pair(image_size), pair(partition_size), pad)
        counts = self.partitioning.counts
        self.global_perceptron = nnx.data(
            GlobalPerceptron(in_features, counts, reduction=reduction, **options) if math.prod(counts) > 1 else None
        )
        self.partition_perceptron: PartitionPerceptron | None = nnx.data(
            PartitionPerceptron(in_features, out_features, partition_size, groups=groups, **options)
        )
        self.local_perceptron: nnx.Dict[layers.ConvBN] = nnx.Dict(
            {f"{k}x{k}": layers.ConvBN(in_features, out_features, k, groups=groups, **options) for k in conv_kernels}
        )

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W O"]:
        """Applies the block.

        Raises:
            ValueError: if the map's size or channels are not those that the block was built for.
        """
        self.partitioning.check(x, self.in_features)
        split = self.partitioning.split(x, self.groups)
        return self.partitioning.join(self.on_partitions(split, self.partitioning.partition_size))

    def on_partitions(self, x: Float[Array, "N m p g c"], partition_size: Sequence[int]) -> Float[Array, "N m p g o"]:
        """Applies the block to a split map."""
        x = x.astype(self.dtype or x.dtype)
        if self.global_perceptron is not None:
            x = x + self.global_perceptron(x)
        branches = [] if self.partition_perceptron is None else [self.partition_perceptron(x)]
        with jax.named_scope("local_perceptron"):
            branches += [layers.on_partitions(conv, x, partition_size) for conv in self.local_perceptron.values()]
        return functools.reduce(operator.add, branches)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the maps that the block accepts."""
        height, width = self.partitioning.image_size
        return height, width, self.in_features

    @property
    def layout(self) -> Layout | None:
        """How the block splits its map; None if it pads it, as layers between blocks must not see the padding."""
        return Layout(self.partitioning, self.groups) if self.partitioning.is_exact else None

    def fused(self) -> "FusedRepMLP":
        """The equivalent `FusedRepMLP`: three FCs without norms and convolutions (Section 3.2)."""
        perceptron, convolutions = self.partition_perceptron, list(self.local_perceptron.values())
        fc3 = None if perceptron is None else (perceptron.kernel[...], perceptron.norm)
        kernel, bias = layers.fuse_fc3(fc3, convolutions, self.partitioning.partition_size, self.groups)
        return FusedRepMLP(
            self.partitioning,
            self.in_features,
            None if self.global_perceptron is None else self.global_perceptron.fused(),
            kernel.astype(self.param_dtype),
            bias.astype(self.param_dtype),
            self.dtype,
        )

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        places = {}
        if self.global_perceptron is not None:
            places["global_perceptron.norm"] = "folded into fc1"
        if self.partition_perceptron is not None:
            places["partition_perceptron.norm"] = "folded into fc3"
        for size in self.local_perceptron:
            places[f"local_perceptron.{size}"] = "conv and norm added to fc3"
        return places


class FusedGlobalPerceptron(nnx.Module):
    """The fused Global Perceptron: FC1 and FC2 on the averages of all partitions.

    Args:
        fc1: FC from the m·C features of all partitions to the hidden features.
        fc2: FC from the hidden features to m·C.
    """

    def __init__(self, fc1: nnx.Linear, fc2: nnx.Linear):
        self.fc1 = fc1
        self.fc2 = fc2

    @jax.named_scope("global_perceptron")
    def __call__(self, x: Float[Array, "N m p g c"]) -> Float[Array, "N m 1 g c"]:
        """The values to add to every pixel of each partition."""
        averages = x.mean(2, keepdims=True)
        return self.fc2(nnx.relu(self.fc1(averages.reshape(x.shape[0], self.fc1.in_features)))).reshape(averages.shape)


class FusedRepMLP(nnx.Module):
    """The fused RepMLP block, which `RepMLP.fused` returns.

    Args:
        partitioning: sizes of the feature map and its partitions.
        in_features: input channels C.
        global_perceptron: FC1 and FC2; None: no Global Perceptron.
        kernel: FC3's kernel, (g, h·w·C/g, h·w·O/g).
        bias: FC3's bias, (g, h·w·O/g).
        dtype: dtype to compute in; None: that of input and parameters.
    """

    def __init__(
        self,
        partitioning: Partitioning,
        in_features: int,
        global_perceptron: FusedGlobalPerceptron | None,
        kernel: Float[Array, "g K J"],
        bias: Float[Array, "g J"],
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
        layers.check_single("FusedRepMLP", self.bias.shape[:-2])
        self.partitioning.check(x, self.in_features)
        split = self.partitioning.split(x, self.groups)
        return self.partitioning.join(self.on_partitions(split, self.partitioning.partition_size))

    @property
    def groups(self) -> int:
        """Groups of channels."""
        return self.bias.shape[0]  # an int8 kernel has no shape

    @property
    def layout(self) -> Layout | None:
        """How the block splits its map; None if it pads it, as layers between blocks must not see the padding."""
        return Layout(self.partitioning, self.groups) if self.partitioning.is_exact else None

    def kernel_by_pixel(self) -> Float[Array, "g h w c h2 w2 o"]:
        """FC3's kernel with the axes of `conv_to_fc`."""
        kernel, (h, w) = self.kernel[...], self.partitioning.partition_size
        groups, inputs, outputs = kernel.shape
        return kernel.reshape(groups, h, w, inputs // (h * w), h, w, outputs // (h * w))

    def on_partitions(self, x: Float[Array, "N m p g c"], partition_size: Sequence[int]) -> Float[Array, "N m p g o"]:
        """Applies the block to a split map."""
        del partition_size  # FC3 does not need to know which pixels are neighbours
        x, kernel, bias = promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        if self.global_perceptron is not None:
            x = x + self.global_perceptron(x)
        with jax.named_scope("partition_perceptron"):
            y = multiply_groups(layers.by_group(x), kernel) + bias[:, None, None]
            return layers.by_pixel(y, x.shape[2])
