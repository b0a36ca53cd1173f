"""ResNet-50 with RepMLP in its middle stages (arXiv 2105.01883, Section 4.2)."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.blocks.operations import max_pool
from repmlp_jax.blocks.repmlp import RepMLPConfig
from repmlp_jax.fusing.arguments import Pair, checked
from repmlp_jax.models.arguments import arguments_for, arguments_text
from repmlp_jax.models.classifier import classifier
from repmlp_jax.models.images import check_images
from repmlp_jax.models.printed import PrintedByBlocks
from repmlp_jax.models.residual import BaseBlock, BottleneckBlock, LightBlock
from repmlp_jax.models.stages import check_stages

BLOCKS = ("base", "light", "bottleneck")
OUTPUT_STRIDES = (8, 16, 32)


class ResNetStages(PrintedByBlocks):
    """ResNet's stem and stages c2 to c5, with RepMLP in c3 and c4; base class of the classifier and of PSPNet.

    Every stage from c3 halves the map, rounding up, until `output_stride` is reached. Later stages keep the size and
    dilate their 3×3 convolutions instead, which keeps their field of view. RepMLP needs no dilation.

    The arguments are those of `PSPNet`.

    Raises:
        ValueError: if there is no such block or output stride, or as `RepMLP`.
    """

    def __init__(
        self,
        stage_sizes: Sequence[int],
        *,
        block: str,
        image_size: tuple[int, int],
        partition_size: tuple[int, int],
        conv_kernels: Sequence[int],
        groups: tuple[int, int],
        reduction: tuple[int, int],
        r: tuple[int, int],
        widths: Sequence[int],
        in_features: int,
        stem_features: int = 64,
        output_stride: int = 32,
        pad: bool,
        rematerialise: bool,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_stages(stage_sizes=stage_sizes, widths=widths)
        if block not in BLOCKS:
            raise ValueError(f"block={block!r} must be one of {', '.join(BLOCKS)}")
        if output_stride not in OUTPUT_STRIDES:
            raise ValueError(f"output_stride={output_stride} must be one of {', '.join(map(str, OUTPUT_STRIDES))}")
        if block != "base" and not pad:
            _check_maps(image_size, partition_size, output_stride)
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def make_block(stage, index, inputs, width):
            stride, dilation = min(4 * 2**stage, output_stride), max(1, 4 * 2**stage // output_stride)
            if block == "base" or not index or stage not in (1, 2):
                halves = stage and not index and dilation == 1
                return BaseBlock(inputs, width // 4, width, strides=2 if halves else 1, dilation=dilation, **options)
            config = RepMLPConfig(partition_size, conv_kernels, groups[stage - 1], reduction[stage - 1], pad)
            repmlp: dict[str, Any] = dict(image_size=tuple(-(-side // stride) for side in image_size), **vars(config))
            if block == "light":
                return LightBlock(inputs, width // 8, width, **repmlp, **options)
            return BottleneckBlock(inputs, width // 4, width, r=r[stage - 1], dilation=dilation, **repmlp, **options)

        self.input_shape = (*image_size, in_features)
        self.multiples = (1, 1) if block == "base" else None
        self.rematerialise = rematerialise
        self.stem = ConvBN(in_features, stem_features, 7, strides=2, **options)
        self.stages: nnx.List = nnx.List()
        inputs = stem_features
        for stage, (size, width) in enumerate(zip(stage_sizes, widths, strict=True)):
            blocks = []
            for index in range(size):
                blocks.append(make_block(stage, index, inputs, width))
                inputs = width
            self.stages.append(nnx.List(blocks))

    def maps(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N _ _ _"]]:
        """The maps of c2, c3, c4 and c5 for a batch of images.

        Raises:
            TypeError: if the images are not floating-point numbers.
            ValueError: if they are not a batch (N, H, W, C) of the size and channels that the model was built for.
                Without RepMLP it takes every size.
        """
        check_images(self, x, self.multiples)
        call = nnx.remat(operator.call) if self.rematerialise else operator.call
        x = max_pool(nnx.relu(self.stem(x)))
        maps = []
        for stage in self.stages:
            for block in stage:
                x = call(block, x)
            maps.append(x)
        return maps


class RepMLPResNet(ResNetStages):
    """A ResNet with RepMLP in the blocks of stride 1 of its stages c3 and c4 (Section 4.2).

    Args:
        stage_sizes: number of blocks in c2, c3, c4 and c5.
        num_classes: number of classes; 0: no classifier, the model returns the features that it averages.
        block: "base" (no RepMLP), "light" or "bottleneck".
        image_size: (height, width) of the image, or one number for both. A stage's map has its sides divided by the
            stage's stride (8 in c3, 16 in c4), rounded up.
        partition_size: (h, w) of all RepMLP's partitions, or one number for both.
        conv_kernels: odd sides of RepMLP's convolutions.
        groups: groups of channels of RepMLP in c3 and in c4, or one number for both, as `reduction` and `r`.
        reduction: factor by which the output of RepMLP's FC1 is smaller than its input, in c3 and in c4.
        r: factor by which a bottleneck's RepMLP has fewer channels, in c3 and in c4.
        widths: output channels of the stages.
        in_features: channels of the image.
        pad: zero-pad maps that partitions do not divide.
        rematerialise: recompute each block in the backward pass to save memory.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if there is no such block, partitions do not divide the maps of c3 and c4 and `pad` is off, or as
            `RepMLP`.
    """

    @checked
    def __init__(
        self,
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 1000,
        *,
        block: str,
        image_size: Pair = (224, 224),
        partition_size: Pair = (7, 7),
        conv_kernels: Sequence[int] = (1, 3, 5),
        groups: Pair = (4, 4),
        reduction: Pair = (1, 1),
        r: Pair = (2, 4),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        in_features: int = 3,
        pad: bool = False,
        rematerialise: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.arguments = arguments_text(self, locals())
        super().__init__(**arguments_for(ResNetStages.__init__, locals()))
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.head = classifier(widths[-1], num_classes, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits of a batch of images; without classes, its features. Raises as `maps`."""
        return self.head(self.maps(x)[-1].mean((1, 2)))


def _check_maps(image_size, partition_size, output_stride):
    strides = {"c3": 8, "c4": min(16, output_stride)}
    for name, side, part in zip(("height", "width"), image_size, partition_size, strict=True):
        maps = {stage: -(-side // stride) for stage, stride in strides.items()}

        def fits(side, part=part):
            return all(-(-side // stride) % part == 0 for stride in strides.values())

        if not fits(side):
            nearest = [next(filter(fits, range(side, 0, -1)), None), next(filter(fits, itertools.count(side)))]
            raise ValueError(
                f"image_size {tuple(image_size)} makes maps of {name} {maps}, which partition_size "
                f"{tuple(partition_size)} does not divide. The nearest image {name}s that work are "
                f"{[side for side in nearest if side]}; pad=True keeps all, with zeros around the maps"
            )
