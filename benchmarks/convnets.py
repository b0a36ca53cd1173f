"""Convolutional nets of others, written as people write them in Flax NNX, without a word about fusing."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx


class ConvNorm(nnx.Module):
    """A convolution with padding as in PyTorch, and its norm."""

    def __init__(self, inputs, outputs, side, strides=1, groups=1, *, rngs):
        options = dict(strides=strides, padding=side // 2, feature_group_count=groups, use_bias=False)
        self.conv = nnx.Conv(inputs, outputs, (side, side), **options, rngs=rngs)
        self.norm = nnx.BatchNorm(outputs, rngs=rngs)

    def __call__(self, x):
        """N, H, W, C."""
        return self.norm(self.conv(x))


class ParallelBlock(nnx.Module):
    """The block of MobileOne, and with one large convolution that of RepVGG: parallel branches, then a ReLU."""

    def __init__(self, inputs, outputs, side, strides=1, groups=1, branches=1, *, rngs):
        conv = functools.partial(ConvNorm, inputs, outputs, strides=strides, groups=groups, rngs=rngs)
        self.branches = nnx.List([conv(side) for _ in range(branches)])
        self.small = conv(1) if side > 1 else None
        self.identity = nnx.BatchNorm(inputs, rngs=rngs) if inputs == outputs and strides == 1 else None

    def __call__(self, x):
        """The sum of the branches, and a ReLU."""
        y = sum(branch(x) for branch in self.branches)
        if self.small is not None:
            y += self.small(x)
        if self.identity is not None:
            y += self.identity(x)
        return nnx.relu(y)


class Classifier(nnx.Module):
    """Blocks, an average over all pixels, and an FC."""

    def __init__(self, blocks, features, *, rngs):
        self.blocks = nnx.List(blocks)
        self.head = nnx.Linear(features, 1000, rngs=rngs)

    def __call__(self, x):
        """Logits: N, 1000."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def repvgg_a0(*, rngs) -> nnx.Module:
    """RepVGG-A0 (arXiv 2101.03697)."""
    blocks, inputs = [], 3
    for depth, width in ((1, 48), (2, 48), (4, 96), (14, 192), (1, 1280)):
        for number in range(depth):
            blocks.append(ParallelBlock(inputs, width, 3, strides=1 if number else 2, rngs=rngs))
            inputs = width
    return Classifier(blocks, inputs, rngs=rngs)


def mobileone_s0(*, rngs) -> nnx.Module:
    """MobileOne-S0 (arXiv 2206.04040): four branches in each block."""
    blocks, inputs = [ParallelBlock(3, 48, 3, strides=2, branches=4, rngs=rngs)], 48
    for depth, width in ((2, 48), (8, 128), (10, 256), (1, 1024)):
        for number in range(depth):
            strides = 1 if number else 2
            blocks.append(ParallelBlock(inputs, inputs, 3, strides, groups=inputs, branches=4, rngs=rngs))
            blocks.append(ParallelBlock(inputs, width, 1, branches=4, rngs=rngs))
            inputs = width
    return Classifier(blocks, inputs, rngs=rngs)


class Bottleneck(nnx.Module):
    """The block of ResNet-50, with its stride in the 3×3 convolution."""

    def __init__(self, inputs, features, strides=1, *, rngs):
        self.reduce = ConvNorm(inputs, features, 1, rngs=rngs)
        self.conv = ConvNorm(features, features, 3, strides, rngs=rngs)
        self.expand = ConvNorm(features, 4 * features, 1, rngs=rngs)
        is_other = strides > 1 or inputs != 4 * features
        self.shortcut = ConvNorm(inputs, 4 * features, 1, strides, rngs=rngs) if is_other else None

    def __call__(self, x):
        """N, H, W, 4·features."""
        y = self.expand(nnx.relu(self.conv(nnx.relu(self.reduce(x)))))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class Stem(nnx.Module):
    """The first layers of ResNet-50."""

    def __init__(self, *, rngs):
        self.conv = ConvNorm(3, 64, 7, 2, rngs=rngs)

    def __call__(self, x):
        """A quarter of the sides."""
        return nnx.max_pool(nnx.relu(self.conv(x)), (3, 3), (2, 2), ((1, 1), (1, 1)))


def resnet50(*, rngs) -> nnx.Module:
    """ResNet-50."""
    blocks, inputs = [Stem(rngs=rngs)], 64
    for stage, depth in enumerate((3, 4, 6, 3)):
        for number in range(depth):
            features = 64 * 2**stage
            blocks.append(Bottleneck(inputs, features, 2 if stage and not number else 1, rngs=rngs))
            inputs = 4 * features
    return Classifier(blocks, inputs, rngs=rngs)


CONVNETS = {"RepVGG-A0": repvgg_a0, "MobileOne-S0": mobileone_s0, "ResNet-50": resnet50}


def image_batch(size: int) -> jax.ShapeDtypeStruct:
    """Images as these nets were made for."""
    return jax.ShapeDtypeStruct((size, 224, 224, 3), jnp.float32)
