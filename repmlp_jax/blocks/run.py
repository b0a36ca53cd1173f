"""Applying layers one after another; neighbours on the same partitions split and join their map only once."""

import operator
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from repmlp_jax.blocks.layers import ConvBN, is_own, is_pointwise, on_partitions
from repmlp_jax.blocks.operations import computed_once
from repmlp_jax.blocks.partition import Layout


class OnPartitions(nnx.Module):
    """A layer as a function of a split map."""

    def __init__(self, layer: nnx.Module, layout: Layout):
        self.layer = layer
        self.layout = layout

    def __call__(self, x: Float[Array, "N m p g c"]) -> Float[Array, "N m p g o"]:
        """Applies the layer."""
        return on_partitions(self.layer, x, self.layout.partitioning.partition_size)


def run(
    layers: Iterable[Any], x: Float[Array, "N H W C"], apply: Callable[[Any, Array], Array] = operator.call
) -> Float[Array, "N H2 W2 O"]:
    """Applies layers one after another.

    From a layer that splits the map on, the map stays split over layers of the same layout and over pointwise layers.
    Only layers of exactly this library's types stay split, since others may do anything with a map. (It does not pay
    for the light blocks of a ResNet, whose maps between the blocks have eight times the channels of their RepMLP.)

    Args:
        layers: the layers.
        x: maps.
        apply: `(layer, x) → y` applies a layer, and what follows it, to a map or to a split map.
    """
    layout = None
    for layer in layers:
        own = layout_of(layer)
        if layout is not None and not stays_split(layer, layout, x.shape[3] * x.shape[4]):
            x, layout = layout.join(x), None
        if layout is None and own is not None:
            own.partitioning.check(x, layer.in_features)
            x, layout = own.split(x), own
        x = apply(layer, x) if layout is None else computed_once(apply(OnPartitions(layer, layout), x))
    return x if layout is None else layout.join(x)


def layout_of(layer: Any) -> Layout | None:
    """How a layer splits its map; None if it does not, or is of a subclass, which may do anything with a map."""
    return layer.layout if "layout" in vars(type(layer)) else None


def stays_split(layer: Any, layout: Layout, channels: int) -> bool:
    """Whether a map of a layout and with this many channels stays split for a layer.

    The layer has the same layout, or is pointwise and the groups of the layout divide its channels. A layer of other
    channels refuses the whole map.
    """
    if (own := layout_of(layer)) is not None:
        return own == layout and layer.in_features == channels
    conv = layer.conv if type(layer) is ConvBN and is_own(layer, "on_partitions") else layer
    return is_pointwise(conv) and conv.in_features == channels and conv.out_features % layout.groups == 0
