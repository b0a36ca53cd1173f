"""How pictures become the images that a model takes."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx

from repmlp_jax.models.cifar import PureMLP, WideConvNet
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.randomness import abstract
from repmlp_jax.models.registry import MODELS, create_model
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.storage.models import SavedModel, is_saved_model, load, model_path
from repmlp_jax.storage.preprocessing import (
    CENTRE,
    CIFAR10_MEAN,
    CIFAR10_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    statistics_of,
)

# Of the datasets that the paper trains these classes on.
STATISTICS: dict[Any, tuple] = {
    **dict.fromkeys((PureMLP, WideConvNet), (CIFAR10_MEAN, CIFAR10_STD)),
    **dict.fromkeys((RepMLPNet, RepMLPResNet, PSPNet), (IMAGENET_MEAN, IMAGENET_STD)),
}


class DataConfiguration(NamedTuple):
    """The preprocessing of a model's images.

    Attributes:
        input_size: (height, width, channels).
        mean: of each channel of images scaled to [0, 1], which is subtracted.
        std: of each channel, by which the difference is divided.
        interpolation: how pictures are resized: "area" averages pixels where a picture shrinks; where it grows, pixels
            are interpolated linearly.
        crop: share of the shorter side of a picture that the centre crop keeps.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "area"
    crop: float = CENTRE


def data_configuration(model: str | Path) -> DataConfiguration:
    """The preprocessing of a saved model, or of a published one by its name.

    Args:
        model: a folder or file that `save_model` wrote, `hf://OWNER/NAME`, or a name of `list_models()`. A published
            model has the statistics of the dataset that the paper trains it on. A model without statistics takes images
            scaled to [0, 1].

    Raises:
        TypeError: for a model itself: it does not know the statistics of its images, which `save_model` stores.
        ValueError: if there is no such model; the message names the nearest. As `load_model`.

    Examples:
        >>> from repmlp_jax import data_configuration
        >>> configuration = data_configuration("RepMLPNet-T256")
        >>> configuration.input_size, configuration.crop
        ((256, 256, 3), 0.875)
        >>> configuration.mean
        (0.485, 0.456, 0.406)
    """
    if isinstance(model, nnx.Module):
        raise TypeError(
            f"a {type(model).__name__} does not know the mean and std of its images: pass the name of a model, or the "
            "path of a saved one"
        )
    if model not in MODELS and is_saved_model(path := model_path(model)):
        return configuration_of(load(path))
    net = abstract(create_model, model)
    mean, std = STATISTICS.get(type(net), (None, None))
    return configuration_of(SavedModel(net, dict(mean=mean, std=std)))


def configuration_of(saved: SavedModel) -> DataConfiguration:
    """The preprocessing of a model that was loaded."""
    shape = input_shape_of(saved.model)
    mean, std = statistics_of(saved.preprocessing, shape[-1])
    return DataConfiguration(shape, tuple(mean), tuple(std))
