"""RepMLPNet (arXiv 2112.11081): stages of units, each a RepMLPNetBlock and a feed-forward net on every pixel."""

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

from repmlp_jax.blocks.layers import BatchNorm, ConvBN, ScaleAndShift, with_kernel, with_norm_before
from repmlp_jax.blocks.operations import computed_once
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock, RepMLPNetBlock
from repmlp_jax.fusing import algebra
from repmlp_jax.fusing.arguments import Pair, checked, pair
from repmlp_jax.models.arguments import arguments_text
from repmlp_jax.models.classifier import NoClassifier, classifier
from repmlp_jax.models.images import check_images
from repmlp_jax.models.printed import PrintedByBlocks
from repmlp_jax.models.stages import check_stages


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The GELU x Φ(x), computed with the error function as in PyTorch.

    `jax.nn.gelu` uses the complementary error function, which takes up to three times as long on a CPU.
    """
    return x * (0.5 + 0.5 * lax.erf(x * math.sqrt(0.5)))


class RepMLPNetUnit(nnx.Module):
    """x + block(norm(x)), then y + FFN(norm(y)).

    Args:
        features: channels C.
        expansion: factor by which the feed-forward net has more hidden features than C.
        drop_rate: probability of dropping each branch for an image in training; kept branches are scaled up.
        dtype, param_dtype, rngs: as of `RepMLPNet`.
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
        """The equivalent `FusedRepMLPNetUnit`; one norm remains as a scale and a shift."""
        kernel, bias = _fold_both(self.norm2, self.fc1.conv.kernel[...], self.fc1.norm)
        return FusedRepMLPNetUnit(
            ScaleAndShift.of(self.norm1),
            self.block if isinstance(self.block, FusedRepMLPNetBlock) else self.block.fused(),
            with_kernel(self.fc1.conv, kernel, bias),
            self.fc2.fused(),
        )

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        block = {} if isinstance(self.block, FusedRepMLPNetBlock) else self.block.folds()
        return {
            **{f"block.{part}": place for part, place in block.items()},
            "norm2": "folded into fc1",
            "fc1.norm": "folded into fc1",
            "fc2.norm": "folded into fc2",
        }

    def keeps(self) -> dict[str, str]:
        """Part that stays → why."""
        return {"norm1": "as a scale and a shift, since channels share FC3 and the gate sees its output too"}


# One program, so that a kernel is written only once.
@jax.jit
def _fold_both(norm_before, kernel, norm_after):
    kernel, bias = algebra.fold_norm(kernel, norm_after)
    return algebra.fold_norm_before(norm_before, kernel, bias)


class FusedRepMLPNetUnit(nnx.Module):
    """The fused unit, which `RepMLPNetUnit.fused` returns.

    Args:
        norm1: the scale and shift of the first norm.
        block: the fused block.
        fc1: 1×1 convolution to the hidden features.
        fc2: 1×1 convolution back to C.
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
        num_classes: number of classes; 0: no classifier.
        dtype, param_dtype, rngs: as of `RepMLPNet`.
    """

    def __init__(self, features, num_classes, *, dtype=None, param_dtype=jnp.float32, rngs):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype)
        self.norm = BatchNorm(features, **options)
        self.linear = classifier(features, num_classes, **options, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits; without a classifier, the features."""
        return self.linear(self.norm(x).mean((1, 2)))

    def fused(self) -> "FusedHead | FusedFeatures":
        """The equivalent `FusedHead`, with the norm folded into the classifier; without one, `FusedFeatures`."""
        if isinstance(self.linear, NoClassifier):
            return FusedFeatures(ScaleAndShift.of(self.norm))
        return FusedHead(with_norm_before(self.linear, self.norm))

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        return {} if isinstance(self.linear, NoClassifier) else {"norm": "folded into linear"}

    def keeps(self) -> dict[str, str]:
        """Part that stays → why."""
        stays = {"norm": "as a scale and a shift, since no classifier follows"}
        return stays if isinstance(self.linear, NoClassifier) else {}


class FusedHead(nnx.Module):
    """Global average pooling and a linear classifier, which `Head.fused` returns."""

    def __init__(self, linear: nnx.Linear):
        self.linear = linear

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits."""
        return self.linear(x.mean((1, 2)))


class FusedFeatures(nnx.Module):
    """Global average pooling, scale and shift, which `Head.fused` returns for no classes."""

    def __init__(self, norm: ScaleAndShift):
        self.norm = norm

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N C"]:
        """The features."""
        return self.norm(x.mean((1, 2), keepdims=True))[:, 0, 0]


class RepMLPNet(PrintedByBlocks):
    """RepMLPNet: a patch embedding, stages of units with a halving between them, and a classifier.

    It takes any resolution that its patches, halvings and partitions divide; `image_size` only sets `input_shape`.

    Args:
        stage_sizes: number of units in each stage.
        widths: channels of each stage.
        num_classes: number of classes; 0: no classifier, the model returns the average of its last norm's output.
        partition_sizes: (h, w) of each stage's partitions, or one number for both.
        sharesets: number of share-sets in each stage.
        conv_kernels: odd sides of the Local Perceptrons' kernels.
        reduction: factor by which the gates have fewer hidden features than channels.
        patch_size: (height, width) of the patches, or one number for both.
        in_features: channels of the image.
        image_size: (height, width) of the image, or one number for both; None: the smallest size that the
            partitions of all stages divide.
        pad: zero-pad maps that partitions do not divide.
        stochastic_depth: probability of dropping each branch of the last unit for an image in training (arXiv
            1603.09382); it grows linearly from 0 at the first unit.
        rematerialise: recompute each unit in the backward pass to save memory.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the lists of the stages differ in length, share-sets do not divide channels, `stochastic_depth`
            is not in [0, 1), or patches, halvings or partitions do not divide the image.
    """

    @checked
    def __init__(
        self,
        stage_sizes: Sequence[int],
        widths: Sequence[int],
        num_classes: int = 1000,
        *,
        partition_sizes: Sequence[Pair],
        sharesets: Sequence[int],
        conv_kernels: Sequence[int] = (1, 3),
        reduction: int = 4,
        patch_size: Pair = (4, 4),
        in_features: int = 3,
        image_size: Pair | None = None,
        pad: bool = False,
        stochastic_depth: float = 0.0,
        rematerialise: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if not 0 <= stochastic_depth < 1:
            raise ValueError(f"stochastic_depth={stochastic_depth:g} must be a probability from 0 to below 1")
        check_stages(stage_sizes=stage_sizes, widths=widths, partition_sizes=partition_sizes, sharesets=sharesets)
        self.arguments = arguments_text(self, locals())
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        patches: Callable[..., ConvBN] = functools.partial(ConvBN, padded=False, **options)
        self.multiples = _multiples(patch_size, [(1, 1)] * len(widths) if pad else partition_sizes)
        height, width = pair(image_size or _multiples(patch_size, partition_sizes))
        _check_size((height, width), self.multiples)
        self.input_shape = (height, width, in_features)
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
        """The logits of a batch of images; without classes, its features. Raises as `maps`."""
        return self.head(self.maps(x)[-1])

    def maps(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N _ _ _"]]:
        """The maps of all stages for a batch of images.

        Raises:
            TypeError: if the images are not floating-point numbers.
            ValueError: if they are not a batch (N, H, W, C), have other channels, or patches, halvings or partitions do
                not divide them.
        """
        check_images(self, x, self.multiples)
        call = nnx.remat(operator.call) if self.rematerialise else operator.call
        x = nnx.relu(self.embedding(x))
        maps = []
        for index, stage in enumerate(self.stages):
            if index:
                x = nnx.relu(self.halvings[index - 1](x))
            for unit in stage:
                x = call(unit, x)
            maps.append(x)
        return maps


def _multiples(patch_size, partition_sizes) -> tuple[int, int]:
    """What the sides of an image are multiples of, so that patches, halvings and partitions divide them."""
    height, width = (
        math.lcm(*(patch * 2**stage * partition[axis] for stage, partition in enumerate(partition_sizes)))
        for axis, patch in enumerate(patch_size)
    )
    return height, width


def _check_size(image_size, multiples):
    if any(side % multiple for side, multiple in zip(image_size, multiples, strict=True)):
        raise ValueError(
            f"image_size {image_size}: height and width must be multiples of {multiples[0]} and {multiples[1]}, which "
            f"patches, halvings and partitions divide (with pad=True, patches and halvings)"
        )
