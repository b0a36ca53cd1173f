"""PSPNet (arXiv 1612.01105) on ResNet with RepMLP: a class for every pixel (arXiv 2105.01883, Section 4.5).

RepMLP needs maps that its partitions divide. The paper's 713 = 8·89 + 1 pixels make maps of 90×90 at stride 8, which
PSPNet keeps from c3 to the end. So c3 and c4 both have 9×9 partitions of 10×10, the partition size of the backbone at
320 pixels: FC3 can be loaded from ImageNet, but not FC1 and FC2, which see 81 partitions instead of 16 and 4. At
8·k + 1 pixels the strides and the interpolation also agree on the corner pixels.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import classifier_init
from repmlp_jax.blocks.layers import ConvBN, on_parts
from repmlp_jax.blocks.resampling import adaptive_average, beside_each_other, enlarge
from repmlp_jax.fusing.arguments import Pair, checked
from repmlp_jax.models.arguments import arguments_for, arguments_text
from repmlp_jax.models.resnet import ResNetStages

# The weight of the auxiliary head's loss (arXiv 1612.01105, Section 3.3).
AUXILIARY_WEIGHT = 0.4


class PyramidPooling(nnx.Module):
    """Adds to a map its averages over windows of several sizes, each convolved and enlarged.

    Args:
        features: channels C of the map; each level has C / levels.
        bins: number of windows along each side, for each level.
        dtype, param_dtype, rngs: as of `PSPNet`.

    Raises:
        ValueError: if there are no levels or windows, or the levels do not divide the channels.
    """

    def __init__(self, features, bins=(1, 2, 3, 6), *, dtype=None, param_dtype=jnp.float32, rngs):
        if not bins or min(bins) < 1:
            raise ValueError(f"bins {tuple(bins)} must be at least 1 window along a side, for at least one level")
        if features % len(bins):
            raise ValueError(
                f"{len(bins)} bins {tuple(bins)} do not divide the map's {features} channels among them: the last "
                f"width must be a multiple of {len(bins)}"
            )
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.bins = tuple(bins)
        self.levels = nnx.List([ConvBN(features, features // len(bins), 1, **options) for _ in bins])

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W C2"]:
        """The map and all levels, enlarged to its size: 2·C channels."""
        return beside_each_other(self.parts(x))

    def parts(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N _ _ _"]]:
        """The map and all levels, not yet enlarged, which together have 2·C channels."""
        levels = (
            nnx.relu(level(adaptive_average(x, (bins, bins))))
            for bins, level in zip(self.bins, self.levels, strict=True)
        )
        return [x, *levels]


class PixelHead(nnx.Module):
    """A 3×3 convolution, dropout of whole channels, and a linear classifier on every pixel.

    Args:
        in_features: input channels.
        mid_features: channels of the convolution.
        num_classes: number of classes.
        dropout: share of the channels that are dropped in training.
        dtype, param_dtype, rngs: as of `PSPNet`.
    """

    def __init__(
        self, in_features, mid_features, num_classes, *, dropout=0.1, dtype=None, param_dtype=jnp.float32, rngs
    ):
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.conv = ConvBN(in_features, mid_features, 3, **options)
        self.drop = nnx.Dropout(dropout, broadcast_dims=(1, 2), rngs=rngs) if dropout else nnx.data(None)
        self.linear = nnx.Linear(mid_features, num_classes, kernel_init=classifier_init, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel."""
        return self.on_parts([x])

    def on_parts(self, maps: Sequence[Float[Array, "N _ _ _"]]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel, from maps beside each other in the channels, enlarged to the first."""
        x = nnx.relu(on_parts(self.conv, maps))
        return self.linear(x if self.drop is None else self.drop(x))

    def fused(self) -> nnx.Module:
        """The equivalent `FusedPixelHead`, without norm and dropout."""
        return FusedPixelHead(self.conv.fused(), nnx.clone(self.linear))

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        return {"conv.norm": "folded into conv"}


class FusedPixelHead(nnx.Module):
    """A 3×3 convolution and a linear classifier on every pixel, which `PixelHead.fused` returns."""

    def __init__(self, conv: nnx.Conv, linear: nnx.Linear):
        self.conv = conv
        self.linear = linear

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel."""
        return self.on_parts([x])

    def on_parts(self, maps: Sequence[Float[Array, "N _ _ _"]]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel, from maps beside each other in the channels, enlarged to the first."""
        return self.linear(nnx.relu(on_parts(self.conv, maps)))


class AuxiliaryHead(PixelHead):
    """The head on the map of c4, which is only used in training."""

    def fused(self) -> nnx.Module:
        """A `NoHead`: inference needs no auxiliary head."""
        return NoHead()

    def folds(self) -> dict[str, str]:
        """Part → where it is folded."""
        return {"conv.norm": "left out with the head, which only helps to train"}


class NoHead(nnx.Module):
    """The fused auxiliary head, which cannot be called."""

    def __call__(self, x: Array):
        """Raises ValueError."""
        raise ValueError("a fused PSPNet has no auxiliary head: it only helps to train. Call the model itself")


class PSPNet(ResNetStages):
    """RepMLP-ResNet's stages, pyramid pooling and a head that classifies every pixel; training adds a head on c4.

    The defaults are the paper's model. Logits are computed at `output_stride` and enlarged bilinearly to the image,
    with aligned corners. `fuse_params` removes the auxiliary head.

    Args:
        num_classes: number of classes.
        stage_sizes: number of blocks in c2, c3, c4 and c5.
        block: "base" (no RepMLP), "light" or "bottleneck".
        image_size: (height, width) of the image, or one number for both; preferably 8·k + 1 pixels. A stage's map has
            the image's sides divided by its stride (8 in c3, the smaller of 16 and `output_stride` in c4), rounded up.
        partition_size: (h, w) of all RepMLP's partitions, or one number for both.
        conv_kernels: odd sides of RepMLP's convolutions.
        groups: groups of channels of RepMLP in c3 and in c4, or one number for both, as `reduction` and `r`.
        reduction: factor by which the output of RepMLP's FC1 is smaller than its input, in c3 and in c4.
        r: factor by which a bottleneck's RepMLP has fewer channels, in c3 and in c4.
        widths: output channels of the stages.
        in_features: channels of the image.
        stem_features: channels of the stem.
        output_stride: image pixels for each pixel of the last map, along a side: 8, 16 or 32.
        bins: number of windows along each side, for each level of the pyramid.
        dropout: share of the heads' channels that are dropped in training.
        pad: zero-pad maps that partitions do not divide.
        rematerialise: recompute each block in the backward pass to save memory.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if partitions do not divide the maps of c3 and c4 and `pad` is off; as `PyramidPooling` and
            `RepMLP`; if there is no such block or output stride, no class, or `dropout` is not in [0, 1).
    """

    @checked
    def __init__(
        self,
        num_classes: int = 19,
        *,
        stage_sizes: Sequence[int] = (3, 4, 6, 3),
        block: str = "bottleneck",
        image_size: Pair = (713, 713),
        partition_size: Pair = (10, 10),
        conv_kernels: Sequence[int] = (1, 3, 5, 7),
        groups: Pair = (4, 8),
        reduction: Pair = (4, 8),
        r: Pair = (2, 4),
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
        if not num_classes:
            raise ValueError("num_classes=0: a PSPNet classifies every pixel and needs at least one class")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout:g} must be a probability from 0 to below 1")
        super().__init__(**arguments_for(ResNetStages.__init__, locals()))
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        *_, c4, c5 = widths
        self.pyramid = PyramidPooling(c5, bins, **options)
        self.head = PixelHead(2 * c5, c5 // 4, num_classes, dropout=dropout, **options)
        self.auxiliary = AuxiliaryHead(c4, c4 // 4, num_classes, dropout=dropout, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N H W classes"]:
        """The logits of every pixel of a batch of images. Raises as `maps`."""
        return enlarge(self._classified(self.maps(x)[-1]), x.shape[1:3])

    def with_auxiliary(
        self, x: Float[Array, "N H W C"]
    ) -> tuple[Float[Array, "N H W classes"], Float[Array, "N H W classes"]]:
        """The logits of both heads, for training; the loss of the second head has weight `AUXILIARY_WEIGHT`.

        Raises:
            ValueError: if the model is fused; otherwise as `maps`.
        """
        *_, c4, c5 = self.maps(x)
        size = x.shape[1:3]
        return enlarge(self._classified(c5), size), enlarge(self.auxiliary(c4), size)

    def _classified(self, x):
        is_own_pyramid = type(self.pyramid) is PyramidPooling
        return on_parts(self.head, self.pyramid.parts(x) if is_own_pyramid else [self.pyramid(x)])
