"""Classifiers without their head, which return the map of every stage, for detection and segmentation."""

import functools
import inspect
import json
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.resnet import RepMLPResNet


class FeatureInfo(NamedTuple):
    """One of the maps that a model returns.

    Attributes:
        channels: of the map.
        reduction: pixels of the image for each pixel of the map along a side, or (down, across) if these differ.
        module: dotted path of the stage that makes it.
    """

    channels: int
    reduction: int | tuple[int, int]
    module: str


def _without_head(constructor: Callable) -> Callable:
    """The constructor of a classifier without `num_classes`; it leaves out the head."""
    signature = inspect.signature(constructor)

    @functools.wraps(constructor)
    def construct(self, *args, **kwargs):
        constructor(self, *args, **kwargs, num_classes=0)
        del self.head

    parameters = [one for one in signature.parameters.values() if one.name != "num_classes"]
    construct.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return construct


class RepMLPNetFeatures(RepMLPNet):
    """A `RepMLPNet` that returns the map of every stage.

    The arguments are those of `RepMLPNet` without `num_classes`.
    """

    __init__ = _without_head(RepMLPNet.__init__)

    def __call__(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N _ _ _"]]:  # type: ignore[override]
        """The maps for a batch of images, from the largest to the smallest. Raises as `RepMLPNet`."""
        return self.maps(x)

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels, reduction and module of each map."""
        arguments = json.loads(self.arguments)
        return _infos(arguments["widths"], *arguments["patch_size"])


class RepMLPResNetFeatures(RepMLPResNet):
    """A `RepMLPResNet` that returns the maps of c2, c3, c4 and c5.

    The arguments are those of `RepMLPResNet` without `num_classes`.
    """

    __init__ = _without_head(RepMLPResNet.__init__)

    def __call__(self, x: Float[Array, "N H W C"]) -> list[Float[Array, "N _ _ _"]]:  # type: ignore[override]
        """The maps for a batch of images, from the largest to the smallest. Raises as `RepMLPResNet`."""
        return self.maps(x)

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels, reduction and module of each map; the sides of a map are rounded up."""
        return _infos(json.loads(self.arguments)["widths"], 4, 4)


def _infos(widths, down, across):
    sides = ((down * 2**stage, across * 2**stage) for stage in range(len(widths)))
    reductions = (pair[0] if down == across else pair for pair in sides)
    return tuple(
        FeatureInfo(width, reduction, f"stages.{stage}")
        for stage, (width, reduction) in enumerate(zip(widths, reductions, strict=True))
    )
