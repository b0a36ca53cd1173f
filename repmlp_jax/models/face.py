"""FaceResNet and RepMLP-FaceRes, which embed images of faces (arXiv 2105.01883, Section 4.4)."""

import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.blocks.repmlp import RepMLPConfig
from repmlp_jax.fusing import algebra
from repmlp_jax.fusing.arguments import Pair, checked, pair
from repmlp_jax.models.arguments import arguments_text
from repmlp_jax.models.images import check_images
from repmlp_jax.models.printed import PrintedByBlocks
from repmlp_jax.models.residual import BaseBlock, BottleneckBlock
from repmlp_jax.models.stages import check_stages

BLOCKS = ("base", "bottleneck")
# The direction of a shorter vector is not defined in float32.
SHORTEST = 1e-12


def unit_length(x: Float[Array, "*N features"]) -> Float[Array, "*N features"]:
    """Scales vectors to length 1, in float32 or wider; a zero vector stays zero, with a finite gradient."""
    x = algebra.widened(x)
    squared = jnp.square(x).sum(-1, keepdims=True)
    return x * lax.rsqrt(jnp.maximum(squared, SHORTEST**2))


class FaceResNet(PrintedByBlocks):
    """A ResNet that embeds faces; with RepMLP Bottlenecks in its stages c2, c3 and c4 it is RepMLP-FaceRes.

    The cosine of the angle between two embeddings measures how likely two images show the same person. Where the paper
    leaves details open, this model takes the simplest choice. The stem is a 7×7 convolution of stride 2 without a pool,
    and every stage begins with a block of stride 2: 96×96 pixels become 24×24, 12×12, 6×6 and 3×3. All other blocks
    have stride 1; outside the last stage they are RepMLP Bottlenecks. The embedding is the average of the last map,
    followed by an FC and its norm, scaled to length 1.

    Args:
        stage_sizes: number of blocks in c2, c3, c4 and c5; fewer stages suit small images.
        embedding_features: length of the embedding.
        block: "base" (no RepMLP) or "bottleneck".
        image_size: (height, width) of the image, or one number for both; a multiple of 32 (of 2 for the stem and for
            each stage).
        partition_size: (h, w) of all RepMLP's partitions, or one number for both.
        conv_kernels: odd sides of RepMLP's convolutions.
        groups: groups of channels of RepMLP.
        reduction: factor by which the output of RepMLP's FC1 is smaller than its input.
        r: factor by which RepMLP has fewer channels than `mid_widths`.
        widths: output channels of the stages.
        mid_widths: channels of the stages' 3×3 convolutions.
        stem_features: channels of the stem.
        in_features: channels of the image.
        pad: zero-pad maps that partitions do not divide.
        rematerialise: recompute each block in the backward pass to save memory.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such block, the lists of the stages differ in length, a side of the image is not a
            multiple of its divisor, `r` does not divide the channels, or as `RepMLP`.
    """

    @checked
    def __init__(
        self,
        stage_sizes: Sequence[int] = (3, 2, 2, 2),
        embedding_features: int = 512,
        *,
        block: str,
        image_size: Pair = (96, 96),
        partition_size: Pair = (6, 6),
        conv_kernels: Sequence[int] = (1, 3, 5),
        groups: int = 4,
        reduction: int = 1,
        r: int = 2,
        widths: Sequence[int] = (128, 256, 512, 1024),
        mid_widths: Sequence[int] = (128, 256, 512, 1024),
        stem_features: int = 64,
        in_features: int = 3,
        pad: bool = False,
        rematerialise: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if block not in BLOCKS:
            raise ValueError(f"block={block!r} must be one of {', '.join(BLOCKS)}")
        image_size = pair(image_size)
        check_stages(stage_sizes=stage_sizes, widths=widths, mid_widths=mid_widths)
        _check_halvings(stage_sizes, image_size)
        self.arguments = arguments_text(self, locals())
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        config = RepMLPConfig(partition_size, conv_kernels, groups, reduction, pad)

        def make_block(stage, inputs, strides):
            mid_features, features = mid_widths[stage], widths[stage]
            if block == "base" or strides > 1 or stage == len(widths) - 1:
                return BaseBlock(inputs, mid_features, features, strides=strides, **options)
            map_size = tuple(side // (4 * 2**stage) for side in image_size)
            repmlp: dict[str, Any] = dict(r=r, image_size=map_size, **vars(config))
            return BottleneckBlock(inputs, mid_features, features, **repmlp, **options)

        self.input_shape = (*image_size, in_features)
        self.multiples = (1, 1) if block == "base" else None
        self.embedding_features = embedding_features
        self.rematerialise = rematerialise
        self.stem = ConvBN(in_features, stem_features, 7, strides=2, **options)
        self.stages: nnx.List = nnx.List()
        inputs = stem_features
        for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True)):
            following = [make_block(stage, width, 1) for _ in range(size - 1)]
            self.stages.append(nnx.List([make_block(stage, inputs, 2), *following]))
            inputs = width
        self.head = ConvBN(inputs, embedding_features, 1, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N embedding"]:
        """The embeddings of a batch of images, of length 1, in float32 or wider.

        Raises:
            TypeError: if the images are not floating-point numbers.
            ValueError: if they are not a batch (N, H, W, C) of the size and channels that the model was built for.
                Without RepMLP it takes every size.
        """
        check_images(self, x, self.multiples)
        call = nnx.remat(operator.call) if self.rematerialise else operator.call
        x = nnx.relu(self.stem(x))
        for stage in self.stages:
            for block in stage:
                x = call(block, x)
        return unit_length(self.head(x.mean((1, 2), keepdims=True))[:, 0, 0])


def _check_halvings(stage_sizes, image_size):
    if min(stage_sizes) < 1:
        raise ValueError(f"stage_sizes {tuple(stage_sizes)}: every stage has at least the block that halves the map")
    shrunk_by = 2 ** (len(stage_sizes) + 1)
    if any(side < 1 or side % shrunk_by for side in image_size):
        raise ValueError(
            f"image_size {tuple(image_size)} must be multiples of {shrunk_by}, by which a stem and {len(stage_sizes)} "
            f"stages shrink the map"
        )
