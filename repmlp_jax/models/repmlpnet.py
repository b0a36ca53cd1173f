"""RepMLPNet (arXiv 2112.11081): a hierarchy of units, each a RepMLPNetBlock and a feed-forward net on every pixel."""

import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import classifier_init
from repmlp_jax.blocks.layers import BatchNorm, ConvBN, ScaleAndShift, with_kernel, with_norm_before
from repmlp_jax.blocks.operations import computed_once
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, RepMLPNetBlock
from repmlp_jax.fusing import algebra
from repmlp_jax.models.arguments import arguments_text


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The GELU x Φ(x), by the error function as PyTorch has it.

    `jax.nn.gelu` takes the complementary one, which takes up to three times as long on a CPU.
    """
    return x * (0.5 + 0.5 * lax.erf(x * math.sqrt(0.5)))


class RepMLPNetUnit(nnx.Module):
    """x + block(norm(x)), then y + FFN(norm(y)).

    Args:
        features: channels C.
        expansion: factor by which the feed-forward net's hidden features are more than C.
        drop_rate: probability with which either branch is left out of an image's training; what stays is scaled up.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
        block: arguments of the RepMLPNetBlock.
    """

    def __init__(self, features, *, expansion=4, drop_rate=0.0, dtype=None, param_dtype=jnp.float32, rngs, **block):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.norm1 = BatchNorm(features, **options)
        self.block = RepMLPNetBlock(features, **block, **options, rngs=rngs)
        self.norm2 = BatchNorm(features, **options)
        self.fc1 = ConvBN(features, expansion * features, 1, **options, rngs=rngs)
        self.fc2 = ConvBN(expansion * features, features, 1, **options, rngs=rngs)
        self.drop = nnx.Dropout(drop_rate, broadcast_dims=(1, 2, 3), rngs=rngs) if drop_rate else nnx.data(None)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the unit."""
        x = computed_once(x + self._drop(self.block(self.norm1(x))))
        return computed_once(x + self._drop(self.fc2(gelu(self.fc1(self.norm2(x))))))

    def _drop(self, y):
        return y if self.drop is None else self.drop(y)

    def fused(self) -> "FusedRepMLPNetUnit":
        """The same with one norm left, as a scale and a shift."""
        kernel, bias = _fold_both(self.norm2, self.fc1.conv.kernel[...], self.fc1.norm)
        return FusedRepMLPNetUnit(
            ScaleAndShift.of(self.norm1),
            self.block if isinstance(self.block, FusedRepMLPNetBlock) else self.block.fused(),
            with_kernel(self.fc1.conv, kernel, bias),
            self.fc2.fused(),
        )

    def folds(self) -> dict[str, str]:
        """Where each batch norm goes."""
        block = {} if isinstance(self.block, FusedRepMLPNetBlock) else self.block.folds()
        return {
            **{f"block.{part}": place for part, place in block.items()},
            "norm2": "folded into fc1",
            "fc1.norm": "folded into fc1",
            "fc2.norm": "folded into fc2",
        }

    def keeps(self) -> dict[str, str]:
        """Which norm stays, and why."""
        return {"norm1": "as a scale and a shift, since channels share FC3 and the gate sees its output too"}


# Compiled as one, so that a kernel is written once.
@jax.jit
def _fold_both(norm_before, kernel, norm_after):
    kernel, bias = algebra.fold_norm(kernel, norm_after)
    return algebra.fold_norm_before(norm_before, kernel, bias)


class FusedRepMLPNetUnit(nnx.Module):
    """The fused unit: what `RepMLPNetUnit.fused` returns.

    Args:
        norm1: what the first norm became.
        block: the fused block.
        fc1: 1×1 convolution to the hidden features.
        fc2: 1×1 convolution back.
    """

    def __init__(self, norm1: ScaleAndShift, block: FusedRepMLPNetBlock, fc1: nnx.Conv, fc2: nnx.Conv):
        self.norm1 = norm1
        self.block = block
        self.fc1 = fc1
        self.fc2 = fc2

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C"]:
        """Applies the unit."""
        x = computed_once(x + self.block(self.norm1(x)))
        return computed_once(x + self.fc2(gelu(self.fc1(x))))


class Head(nnx.Module):
    """Norm, global average pooling and a linear classifier.

    Args:
        features: input channels.
        num_classes: classes.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
    """

    def __init__(self, features, num_classes, *, dtype=None, param_dtype=jnp.float32, rngs):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.norm = BatchNorm(features, **options)
        self.linear = nnx.Linear(features, num_classes, kernel_init=classifier_init, **options, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits."""
        return self.linear(self.norm(x).mean((1, 2)))

    def fused(self) -> "FusedHead":
        """The same with the norm folded into the classifier."""
        return FusedHead(with_norm_before(self.linear, self.norm))

    def folds(self) -> dict[str, str]:
        """Where the norm goes."""
        return {"norm": "folded into linear"}


class FusedHead(nnx.Module):
    """Global average pooling and a linear classifier: what `Head.fused` returns."""

    def __init__(self, linear: nnx.Linear):
        self.linear = linear

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits."""
        return self.linear(x.mean((1, 2)))


class RepMLPNet(nnx.Module):
    """RepMLPNet: a patch embedding, stages of units with a halving between them, and a classifier.

    It runs at any resolution that its patches, halvings and partitions divide; `image_size` is the one it is meant for.

    Args:
        stage_sizes: units of each stage.
        widths: channels of each stage.
        num_classes: classes.
        partition_sizes: (h, w) of each stage's partitions.
        sharesets: share-sets of each stage.
        conv_kernels: odd sides of the Local Perceptrons' kernels.
        reduction: factor by which the gates have fewer hidden features than channels.
        patch_size: (height, width) of the patches.
        in_features: channels of the image.
        image_size: (height, width) of the image that it is meant for; None: one partition at every stage.
        pad: zero-pad maps that partitions do not divide.
        stochastic_depth: probability with which the last unit's two branches are left out of an image's training
            (arXiv 1603.09382); it grows from 0 at the first unit in even steps.
        rematerialise: compute each unit again in the backward pass, to train in less memory.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the stages' lists differ in length, share-sets do not divide channels, or `stochastic_depth` is
            no probability.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 1000,
        *,
        partition_sizes: Sequence[tuple[int, int]],
        sharesets: Sequence[int],
        conv_kernels: Sequence[int] = (1, 3),
        reduction: int = 4,
        patch_size: tuple[int, int] = (4, 4),
        in_features: int = 3,
        image_size: tuple[int, int] | None = None,
        pad: bool = False,
        stochastic_depth: float = 0.0,
        rematerialise: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= stochastic_depth < 1:
            raise ValueError(f"stochastic_depth={stochastic_depth} is no probability from 0 to below 1")
        lengths = {len(stage_sizes), len(widths), len(partition_sizes), len(sharesets)}
        if len(lengths) > 1:
            raise ValueError(
                f"stage_sizes, widths, partition_sizes and sharesets name {len(stage_sizes)}, {len(widths)}, "
                f"{len(partition_sizes)} and {len(sharesets)} stages: they must name equally many"
            )
        self.arguments = arguments_text(self, locals())
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        patches: Callable[..., ConvBN] = functools.partial(ConvBN, padded=False, **options)
        (h, w), (patch_h, patch_w) = partition_sizes[0], patch_size
        self.input_shape = (*(image_size or (h * patch_h, w * patch_w)), in_features)
        self.embedding = patches(in_features, widths[0], patch_size, strides=patch_size)
        self.rematerialise = rematerialise
        self.stages: nnx.List = nnx.List()
        drop_rates = iter(np.linspace(0, stochastic_depth, sum(stage_sizes)).tolist())
        for size, width, partition_size, sets in zip(stage_sizes, widths, partition_sizes, sharesets, strict=True):
            block: dict[str, Any] = dict(
                partition_size=partition_size, sharesets=sets, conv_kernels=conv_kernels, reduction=reduction, pad=pad
            )
            units = [RepMLPNetUnit(width, drop_rate=next(drop_rates), **block, **options) for _ in range(size)]
            self.stages.append(nnx.List(units))
        self.halvings = nnx.List([patches(*pair, (2, 2), strides=(2, 2)) for pair in itertools.pairwise(widths)])
        self.head = Head(widths[-1], num_classes, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits of a batch of images.

        Raises:
            ValueError: if partitions do not divide a stage's map.
        """
        call = nnx.remat(operator.call) if self.rematerialise else operator.call
        x = nnx.relu(self.embedding(x))
        for index, stage in enumerate(self.stages):
            if index:
                x = nnx.relu(self.halvings[index - 1](x))
            for unit in stage:
                x = call(unit, x)
        return self.head(x)
