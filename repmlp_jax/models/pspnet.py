"""PSPNet (arXiv 1612.01105) on ResNet with RepMLP: a class for every pixel (arXiv 2105.01883, Section 4.5).

The sizes of the paper. RepMLP needs maps that its partitions divide, and 713 = 8·89 + 1 pixels make maps of 90×90 where
the stride is 8. As PSPNet keeps that stride from c3 to the end, c3 and c4 both have 90×90, cut into 9×9 partitions of
10×10, those that the backbone has at 320 pixels: its FC3 can come from ImageNet as it is, while FC1 and FC2, which see
81 partitions in place of 16 and 4, cannot. (Were c4 halved once more, to 45×45, no published partition would divide it,
and 8 would be a strange factor to reduce FC1 by.) Sizes of 8·k + 1 pixels are also those on whose corners both the
strides and the interpolation agree, so they suit any net of this kind.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import classifier_init
from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.models.arguments import arguments_for, arguments_text
from repmlp_jax.models.resampling import adaptive_average, enlarge
from repmlp_jax.models.resnet import OUTPUT_STRIDES, ResNetStages

# The weight of the auxiliary head's loss beside the other's (arXiv 1612.01105, Section 3.3).
AUXILIARY_WEIGHT = 0.4


class PyramidPooling(nnx.Module):
    """The map beside what it looks like from afar: averages over ever smaller windows, each convolved and enlarged.

    Args:
        features: channels C of the map; each level has C / levels.
        bins: side of each level in windows.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the levels do not divide the channels.
    """

    def __init__(self, features, bins=(1, 2, 3, 6), *, dtype=None, param_dtype=jnp.float32, rngs):
        if features % len(bins):
            raise ValueError(
                f"{len(bins)} bins {tuple(bins)} do not divide the map's {features} channels among them: the last "
                f"width must be a multiple of {len(bins)}"
            )
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.bins = tuple(bins)
        self.levels = nnx.List([ConvBN(features, features // len(bins), 1, **options) for _ in bins])

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W 2*C"]:
        """The map and all levels in its size, channel after channel."""
        levels = (
            enlarge(nnx.relu(level(adaptive_average(x, (bins, bins)))), x.shape[1:3])
            for bins, level in zip(self.bins, self.levels, strict=True)
        )
        return jnp.concatenate([x, *levels], axis=-1)


class PixelHead(nnx.Module):
    """A 3×3 convolution, dropout of whole channels, and a linear classifier on every pixel.

    Args:
        in_features: input channels.
        mid_features: channels of the convolution.
        num_classes: classes.
        dropout: share of the channels that a training step leaves out.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
    """

    def __init__(
        self, in_features, mid_features, num_classes, *, dropout=0.1, dtype=None, param_dtype=jnp.float32, rngs
    ):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv = ConvBN(in_features, mid_features, 3, **options)
        self.drop = nnx.Dropout(dropout, broadcast_dims=(1, 2), rngs=rngs) if dropout else nnx.data(None)
        self.linear = nnx.Linear(mid_features, num_classes, kernel_init=classifier_init, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel of the map."""
        x = nnx.relu(self.conv(x))
        return self.linear(x if self.drop is None else self.drop(x))

    def fused(self) -> nnx.Module:
        """The same without norm and dropout: a `FusedPixelHead`."""
        return FusedPixelHead(self.conv.fused(), nnx.clone(self.linear))

    def folds(self) -> dict[str, str]:
        """Where the norm goes."""
        return {"conv.norm": "folded into conv"}


class FusedPixelHead(nnx.Module):
    """A 3×3 convolution and a linear classifier on every pixel: what `PixelHead.fused` returns."""

    def __init__(self, conv: nnx.Conv, linear: nnx.Linear):
        self.conv = conv
        self.linear = linear

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel of the map."""
        return self.linear(nnx.relu(self.conv(x)))


class AuxiliaryHead(PixelHead):
    """The head on c4's map that helps to train the stages below it, and is of no use afterwards."""

    def fused(self) -> nnx.Module:
        """Nothing: inference needs no auxiliary head."""
        return NoHead()

    def folds(self) -> dict[str, str]:
        """Where the norm goes."""
        return {"conv.norm": "left out with the head, which only helps to train"}


class NoHead(nnx.Module):
    """What fusing leaves of the auxiliary head."""

    def __call__(self, x: Array):
        """Raises, as there is nothing that could be computed."""
        raise ValueError("a fused PSPNet has no auxiliary head: it only helps to train. Call the model itself")


class PSPNet(ResNetStages):
    """A class for every pixel: RepMLP-ResNet's stages, pyramid pooling and a head; a second head on c4 helps to train.

    The defaults are the paper's net. Logits are computed at `output_stride` and enlarged to the image bilinearly,
    corner to corner. `fuse_params` leaves the auxiliary head out.

    Args:
        num_classes: classes.
        stage_sizes: blocks of the stages c2, c3, c4 and c5.
        block: "base" (no RepMLP), "light" or "bottleneck".
        image_size: (height, width) of the image, best of 8·k + 1 pixels; a stage's map has the image's sides divided by
            its stride (8 in c3, that or `output_stride` in c4), rounded up.
        partition_size: (h, w) of all RepMLP's partitions.
        conv_kernels: odd sides of RepMLP's convolutions.
        groups: groups of channels of RepMLP in c3 and in c4.
        reduction: factor by which RepMLP's FC1 has fewer outputs than inputs, in c3 and in c4.
        r: factor by which a bottleneck's RepMLP has fewer channels, in c3 and in c4.
        widths: output channels of the stages.
        in_features: channels of the image.
        stem_features: channels of the stem.
        output_stride: side of the image's square that becomes one pixel of the last map: 8, 16 or 32.
        bins: side of each level of the pyramid in windows.
        dropout: share of the heads' channels that a training step leaves out.
        pad: zero-pad maps that partitions do not divide.
        rematerialise: compute each block again in the backward pass, to train in less memory.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if partitions do not divide the maps of c3 and c4 and `pad` is off; as `PyramidPooling` and
            `RepMLP`; if there is no such block or output stride.
    """

    def __init__(
        self,
        num_classes: int = 19,
        *,
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        block: str = "bottleneck",
        image_size: tuple[int, int] = (713, 713),
        partition_size: tuple[int, int] = (10, 10),
        conv_kernels: Sequence[int] = (1, 3, 5, 7),
        groups: tuple[int, int] = (4, 8),
        reduction: tuple[int, int] = (4, 8),
        r: tuple[int, int] = (2, 4),
        widths: Sequence[int] = (256, 512, 1024, 2048),
        in_features: int = 3,
        stem_features: int = 64,
        output_stride: int = 8,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        pad: bool = False,
        rematerialise: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.arguments = arguments_text(self, locals())
        if block != "base" and not pad and output_stride in OUTPUT_STRIDES:
            _check_maps(image_size, partition_size, output_stride)
        super().__init__(**arguments_for(ResNetStages.__init__, locals()))
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        *_, c4, c5 = widths
        self.pyramid = PyramidPooling(c5, bins, **options)
        self.head = PixelHead(2 * c5, c5 // 4, num_classes, dropout=dropout, **options)
        self.auxiliary = AuxiliaryHead(c4, c4 // 4, num_classes, dropout=dropout, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel of a batch of images."""
        return enlarge(self.head(self.pyramid(self.maps(x)[-1])), x.shape[1:3])

    def with_auxiliary(
        self, x: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "N H W classes"], Float[Array, "N H W classes"]]:
        """The logits of both heads, to train with: the loss is that of the first and 0.4 that of the second.

        Raises:
            ValueError: if the model is fused.
        """
        *_, c4, c5 = self.maps(x)
        size = x.shape[1:3]
        return enlarge(self.head(self.pyramid(c5)), size), enlarge(self.auxiliary(c4), size)


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
