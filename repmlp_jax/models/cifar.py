"""The CIFAR-10 models of the paper's Section 4.1 and Table 1: the pure MLP, its ablations, and the Wide ConvNet."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from repmlp_jax.blocks.layers import ConvBN
from repmlp_jax.blocks.operations import halve
from repmlp_jax.blocks.repmlp import RepMLP, RepMLPConfig
from repmlp_jax.blocks.run import run
from repmlp_jax.fusing.arguments import Pair, checked
from repmlp_jax.models.arguments import arguments_for, arguments_text
from repmlp_jax.models.classifier import classifier
from repmlp_jax.models.images import check_images
from repmlp_jax.models.printed import PrintedByBlocks
from repmlp_jax.models.stages import check_stages

ABLATIONS = ("no_local", "no_global", "fc3_conv9", "conv9")


class StagedNet(PrintedByBlocks):
    """The body of Table 1's models: spatial mixers between FCs on every pixel (1×1 convolution and norm).

    A stage is mixer, FC, mixer, FC. Its last FC widens to the next stage, and a 2×2 max-pool halves the map. A ReLU
    follows each FC and mixer; global average pooling and a linear classifier are at the end.

    Args:
        make_mixer: called with (features, image_size) for every mixer. Other arguments are those of `PureMLP`.

    Attributes:
        multiples: of which the sides of images are multiples; None: only images of `image_size` are taken.

    Raises:
        ValueError: if the map cannot be halved between the stages.
    """

    multiples: tuple[int, int] | None = None

    def __init__(
        self,
        make_mixer: Callable[[int, tuple[int, int]], nnx.Module],
        *,
        num_classes: int,
        image_size: tuple[int, int],
        in_features: int,
        widths: Sequence[int],
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        check_stages(widths=widths)
        halvings = 2 ** (len(widths) - 1)
        if any(side % halvings for side in image_size):
            raise ValueError(
                f"image_size {tuple(image_size)} cannot be halved {len(widths) - 1} times for {len(widths)} widths: "
                f"both sides must be multiples of {halvings}"
            )
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        fc: Callable[..., ConvBN] = functools.partial(ConvBN, kernel_size=1, **options)
        self.input_shape = (*image_size, in_features)
        self.embedding = fc(in_features, widths[0])
        self.stages: nnx.List = nnx.List()
        for stage, (width, next_width) in enumerate(zip(widths, (*widths[1:], widths[-1]), strict=True)):
            size = tuple(side // 2**stage for side in image_size)
            layers = make_mixer(width, size), fc(width, width), make_mixer(width, size), fc(width, next_width)
            self.stages.append(nnx.List(layers))
        self.head = classifier(widths[-1], num_classes, **options)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N classes"]:
        """The logits of a batch of images; without classes, its features.

        Raises:
            TypeError: if the images are not floating-point numbers.
            ValueError: if they are not a batch (N, H, W, C) of the size and channels that the model was built for.
        """
        check_images(self, x, self.multiples)
        x = nnx.relu(self.embedding(x))
        for index, stage in enumerate(self.stages):
            if index:
                x = halve(x)
            x = run(stage, x, lambda layer, x: nnx.relu(layer(x)))
        return self.head(x.mean((1, 2)))


class PureMLP(StagedNet):
    """The pure MLP of Section 4.1 with RepMLP blocks as mixers (91.11 % on CIFAR-10 in Table 1).

    Args:
        num_classes: number of classes; 0: no classifier, the model returns the features that it averages.
        image_size: (height, width) of the input, or one number for both.
        in_features: channels of the input.
        widths: channels of each stage.
        partition_size: (h, w) of all RepMLP blocks, or one number for both.
        conv_kernels: odd sides of the Local Perceptron's kernels.
        groups: groups of channels of FC3 and the convolutions.
        reduction: factor by which FC1's output is smaller than its input.
        ablation: an ablation of Table 1: "no_local" (no convolutions), "no_global" (no Global Perceptron), "fc3_conv9"
            (a 9×9 convolution on the partitions replaces FC3, with the same groups), "conv9" (a 9×9 convolution on the
            whole map replaces RepMLP, with the same groups); None: the full model.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.

    Raises:
        ValueError: if the ablation is not one of these, or the sizes do not fit.
    """

    @checked
    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_size: Pair = (32, 32),
        in_features: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        partition_size: Pair = (8, 8),
        conv_kernels: Sequence[int] = (1, 3, 5, 7),
        groups: int = 2,
        reduction: int = 1,
        ablation: str | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        if ablation not in (None, *ABLATIONS):
            raise ValueError(f"ablation={ablation!r} must be one of {', '.join(ABLATIONS)}")
        self.arguments = arguments_text(self, locals())
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        def make_mixer(features, image_size):
            if ablation == "conv9":
                return ConvBN(features, features, 9, groups=groups, **options)
            kernels = {"no_local": (), "fc3_conv9": (*conv_kernels, 9)}.get(ablation or "", conv_kernels)
            config = RepMLPConfig(partition_size, kernels, groups, reduction)
            block = RepMLP(features, features, image_size=image_size, **vars(config), **options)
            if ablation == "no_global":
                block.global_perceptron = None
            if ablation == "fc3_conv9":
                block.partition_perceptron = None
            return block

        super().__init__(**arguments_for(StagedNet.__init__, locals()))


class WideConvNet(StagedNet):
    """The convolutional baseline of Table 1, twice as wide and with 3×3 convolutions as mixers (91.99 %).

    It takes images of every size that can be halved between the stages.

    Args:
        num_classes: number of classes; 0: no classifier, the model returns the features that it averages.
        image_size: (height, width) of the input, or one number for both.
        in_features: channels of the input.
        widths: channels of each stage.
        dtype: dtype to compute in; None: that of input and parameters.
        param_dtype: dtype of the parameters.
        rngs: source of the initial weights.
    """

    @checked
    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_size: Pair = (32, 32),
        in_features: int = 3,
        widths: Sequence[int] = (32, 64, 128),
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.arguments = arguments_text(self, locals())
        options: dict[str, Any] = dict(dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        super().__init__(
            lambda features, image_size: ConvBN(features, features, 3, **options),
            **arguments_for(StagedNet.__init__, locals()),
        )
        self.multiples = (2 ** (len(widths) - 1),) * 2
