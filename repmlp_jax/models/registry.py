"""The published models by name, and those that people register."""

import fnmatch
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from flax import nnx

from repmlp_jax.fusing.arguments import checked
from repmlp_jax.models.arguments import remembering
from repmlp_jax.models.cifar import ABLATIONS, PureMLP, WideConvNet
from repmlp_jax.models.face import FaceResNet
from repmlp_jax.models.feature_maps import RepMLPNetFeatures, RepMLPResNetFeatures
from repmlp_jax.models.images import PUBLISHED_SIZES
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.nearest import lookup

ModelClass = TypeVar("ModelClass", bound=type[nnx.Module])


def _repmlpnet(stage_sizes, widths, resolution, sharesets):
    partitions = tuple((resolution // ratio,) * 2 for ratio in (4, 8, 16, 32))
    return RepMLPNet, dict(stage_sizes=stage_sizes, widths=widths, partition_sizes=partitions, sharesets=sharesets)


def _at_224(block, *groups):
    return RepMLPResNet, dict(block=block, groups=groups)


def _at_320(block, *groups):
    sizes = dict(image_size=(320, 320), partition_size=(10, 10), conv_kernels=(1, 3, 5, 7))
    return RepMLPResNet, dict(block=block, groups=groups, **sizes)


# Name → class and arguments.
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
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

# Classifier → the class of its maps, which takes the same arguments but for num_classes.
FEATURES: dict[type, type] = {RepMLPNet: RepMLPNetFeatures, RepMLPResNet: RepMLPResNetFeatures}


def _image_size(model_class, arguments) -> tuple[int, int]:
    parameters = inspect.signature(model_class.__init__).parameters
    if model_class is RepMLPNet:  # One partition in every stage.
        pairs = zip(arguments["partition_sizes"][0], parameters["patch_size"].default, strict=True)
        height, width = (partition * patch for partition, patch in pairs)
        return height, width
    return arguments.get("image_size", parameters["image_size"].default)


PUBLISHED_SIZES.update({name: (entry[0], _image_size(*entry)) for name, entry in MODELS.items()})


@checked
def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` takes: those of the published models, then those that were registered.

    Args:
        pattern: which of them, with the wildcards of the shell, in upper or lower case.

    Examples:
        >>> from repmlp_jax import list_models
        >>> list_models("RepMLPNet-T*")
        ['RepMLPNet-T224', 'RepMLPNet-T256']
    """
    return [name for name in MODELS if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


@checked
def create_model(name: str, *, features_only: bool = False, rngs: nnx.Rngs, **overrides) -> nnx.Module:
    """Builds a model with initial weights; `interop.pretrained.create_model` describes the arguments.

    Raises:
        ValueError: if there is no such model; the message names the nearest. If `features_only` is not for its class.
    """
    model_class, arguments = lookup(MODELS, name, "model")
    if features_only:
        if model_class not in FEATURES:
            classes = " and ".join(one.__name__ for one in FEATURES)
            raise ValueError(f"features_only is for {classes}, and {name!r} is a {model_class.__name__}")
        if "num_classes" in overrides:
            raise ValueError(
                f"features_only has no classifier for num_classes={overrides['num_classes']}: leave one out"
            )
        model_class = FEATURES[model_class]
        arguments = {key: value for key, value in arguments.items() if key != "num_classes"}
    return model_class(**{**arguments, **overrides}, rngs=rngs)


def register_model(name: str, /, **arguments) -> Callable[[ModelClass], ModelClass]:
    """Names a model of your own, for `create_model`, `list_models`, `save_model` and `load_model`.

    It decorates a class, or is called with one: `register_model("net-large", width=64)(Net)`. A class may have several
    names. From then on each new model of the class keeps the arguments that it was built with (in its attribute
    `arguments`), and `load_model` builds it again from them. So the process that loads a model has to register its
    class, too. The constructor has to take `rngs`, and all other arguments by name; what can be saved of them are
    numbers, strings, flags, None, dtypes called `dtype` or `param_dtype`, arrays, and sequences of these, which come
    back as tuples. Arguments that stay at their default may be anything.

    A cell of a notebook can be run again: a class replaces the one of the same name and module.

    Args:
        name: a new name.
        arguments: arguments of the class that belong to the name; others can be passed to `create_model`.

    Returns:
        A function that takes a class of `nnx.Module`s and returns it.

    Raises:
        TypeError: if the name is not a string, what is decorated is not such a class, or its constructor does not take
            `rngs` and these arguments.
        ValueError: if another class has the name, or a registered class of another module has the same name, as saved
            models name their class.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import create_model, load_model, register_model, save_model
        >>> @register_model("small-net", features=4)
        ... class SmallNet(nnx.Module):
        ...     def __init__(self, features, *, rngs):
        ...         self.head = nnx.Linear(features, 2, rngs=rngs)
        >>> save_model("saved", create_model("small-net", features=3, rngs=nnx.Rngs(0)))
        >>> load_model("saved").head.kernel.shape
        (3, 2)
    """
    if not isinstance(name, str):
        raise TypeError(f'register_model takes a name, as in @register_model("a-name"), and not {name!r}')

    def register(model_class: ModelClass) -> ModelClass:
        _check_class(model_class, arguments, "register_model")
        namesake = registered_classes().get(model_class.__name__)
        if namesake is not None and not _is_again(model_class, namesake):
            raise ValueError(
                f"{_named(namesake)} is registered, and saved models know a class by its name alone: "
                f"{_named(model_class)} needs another name"
            )
        holder, known = MODELS.get(name, (model_class, arguments))
        if not _is_again(model_class, holder) or (model_class is holder and arguments != known):
            raise ValueError(f"the name {name!r} is taken, by {_named(holder)} with the arguments {known}: use another")
        if model_class is not namesake:
            model_class.__init__ = remembering(model_class)  # type: ignore[method-assign]
        earlier = {one: entry for one, entry in MODELS.items() if entry[0] is namesake}
        MODELS.update({one: (model_class, of_name) for one, (_, of_name) in earlier.items()})
        MODELS[name] = model_class, arguments
        return model_class

    return register


def register_savable(model_class: ModelClass) -> ModelClass:
    """Registers a class of your own for `save_model` and `load_model`; it is known by the name of the class.

    It does what `register_model` does; a class that is registered already stays as it is. It also decorates a class.

    Args:
        model_class: a class of `nnx.Module`s, whose constructor takes `rngs`.

    Returns:
        The class.

    Raises:
        TypeError, ValueError: as `register_model`.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, load_model, register_savable, save_model
        >>> class Mixer(RepMLP):
        ...     pass
        >>> mixer = register_savable(Mixer)(4, 4, image_size=6, partition_size=3, rngs=nnx.Rngs(0))
        >>> save_model("mixer", mixer)
        >>> type(load_model("mixer")).__name__
        'Mixer'
    """
    _check_class(model_class, {}, "register_savable")
    if model_class in registered_classes().values():
        return model_class
    return register_model(model_class.__name__)(model_class)


def registered_classes() -> dict[str, type]:
    """Name of a class → the class, of all that are registered."""
    classes = [*FEATURES.values(), *(model_class for model_class, _ in MODELS.values())]
    return {model_class.__name__: model_class for model_class in classes}


def _check_class(model_class, arguments, function):
    if not (isinstance(model_class, type) and issubclass(model_class, nnx.Module)):
        raise TypeError(f"{function} takes a class of nnx.Modules, and not {model_class!r}")
    if model_class.__module__.startswith("flax."):
        raise TypeError(f"{function} takes a class of your own, which {_named(model_class)} is not: derive one from it")
    try:
        inspect.signature(model_class.__init__).bind_partial(None, rngs=None, **arguments)
    except TypeError as error:
        raise TypeError(f"{function}: {_named(model_class)} cannot be built from its arguments: {error}") from None


def _is_again(model_class, other) -> bool:
    """Whether a class is another one, or its next definition."""
    return (model_class.__module__, model_class.__qualname__) == (other.__module__, other.__qualname__)


def _named(model_class) -> str:
    return f"{model_class.__module__}.{model_class.__qualname__}"
