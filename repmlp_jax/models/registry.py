"""The published models by name."""

import inspect

from flax import nnx

from repmlp_jax.fusing.arguments import checked
from repmlp_jax.models.cifar import ABLATIONS, PureMLP, WideConvNet
from repmlp_jax.models.face import FaceResNet
from repmlp_jax.models.images import PUBLISHED_SIZES
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.nearest import lookup


def _repmlpnet(stage_sizes, widths, resolution, sharesets):
    partitions = tuple((resolution // ratio,) * 2 for ratio in (4, 8, 16, 32))
    return RepMLPNet, dict(stage_sizes=stage_sizes, widths=widths, partition_sizes=partitions, sharesets=sharesets)


def _at_224(block, *groups):
    return RepMLPResNet, dict(block=block, groups=groups)


def _at_320(block, *groups):
    sizes = dict(image_size=(320, 320), partition_size=(10, 10), conv_kernels=(1, 3, 5, 7))
    return RepMLPResNet, dict(block=block, groups=groups, **sizes)


# Name → class and arguments.
MODELS = {
    "pure_mlp": (PureMLP, {}),
    **{f"pure_mlp_{ablation}": (PureMLP, {"ablation": ablation}) for ablation in ABLATIONS},
    "wide_convnet": (WideConvNet, {}),
    # RepMLP-ResNet-50 by block, resolution, and groups in c3 and c4; names without groups are the official code's.
    "RepMLP-Res50-base-224": (RepMLPResNet, dict(block="base")),
    "RepMLP-Res50-light-224": _at_224("light", 4, 4),
    "RepMLP-Res50-light-224-g8-16": _at_224("light", 8, 16),
    "RepMLP-Res50-bottleneck-224": _at_224("bottleneck", 8, 8),
    "RepMLP-Res50-bottleneck-224-g4-8": _at_224("bottleneck", 4, 8),
    "RepMLP-Res50-bottleneck-224-g8-16": _at_224("bottleneck", 8, 16),
    "RepMLP-Res50-bottleneck-320-g8-16": _at_320("bottleneck", 8, 16),
    # RepMLPNet: units and channels of the four stages, resolution, share-sets.
    "RepMLPNet-T224": _repmlpnet((2, 2, 6, 2), (64, 128, 256, 512), 224, (1, 4, 16, 128)),
    "RepMLPNet-T256": _repmlpnet((2, 2, 6, 2), (64, 128, 256, 512), 256, (1, 4, 16, 128)),
    "RepMLPNet-B224": _repmlpnet((2, 2, 12, 2), (96, 192, 384, 768), 224, (1, 4, 32, 128)),
    "RepMLPNet-B256": _repmlpnet((2, 2, 12, 2), (96, 192, 384, 768), 256, (1, 4, 32, 128)),
    "RepMLPNet-D256": _repmlpnet((2, 2, 18, 2), (80, 160, 320, 640), 256, (1, 4, 16, 128)),
    "RepMLPNet-L256": _repmlpnet((2, 2, 18, 2), (96, 192, 384, 768), 256, (1, 4, 32, 256)),
    # Embeddings of faces.
    "FaceResNet": (FaceResNet, dict(block="base")),
    "RepMLP-FaceRes": (FaceResNet, dict(block="bottleneck")),
    # A class for every pixel.
    "PSPNet-Res50": (PSPNet, dict(block="base")),
    "PSPNet-RepMLP-Res50": (PSPNet, dict(block="bottleneck")),
}


def _image_size(model_class, arguments) -> tuple[int, int]:
    parameters = inspect.signature(model_class.__init__).parameters
    if model_class is RepMLPNet:  # One partition in every stage.
        pairs = zip(arguments["partition_sizes"][0], parameters["patch_size"].default, strict=True)
        height, width = (partition * patch for partition, patch in pairs)
        return height, width
    return arguments.get("image_size", parameters["image_size"].default)


PUBLISHED_SIZES.update({name: (entry[0], _image_size(*entry)) for name, entry in MODELS.items()})


def list_models() -> list[str]:
    """The names that `create_model` takes.

    Examples:
        >>> from repmlp_jax import list_models
        >>> [name for name in list_models() if name.endswith("T224")]
        ['RepMLPNet-T224']
    """
    return list(MODELS)


@checked
def create_model(name: str, *, rngs: nnx.Rngs, **overrides) -> nnx.Module:
    """Builds a published model.

    Args:
        name: one of `list_models()`.
        rngs: source of the initial weights.
        overrides: arguments of the model's class, which override those of the name.

    Raises:
        ValueError: if there is no such model; the message names the nearest.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import create_model
        >>> small = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
        >>> model = create_model("pure_mlp", num_classes=7, **small, rngs=nnx.Rngs(0))
        >>> model.input_shape
        (8, 8, 3)
    """
    model_class, arguments = lookup(MODELS, name, "model")
    return model_class(**{**arguments, **overrides}, rngs=rngs)
