"""The images that a model is called with, checked by their shape and dtype alone."""

import operator
from typing import Any

from repmlp_jax.blocks.partition import check_floating

# Name of a published model → its class, and (height, width) of its images; the registry fills it.
PUBLISHED_SIZES: dict[str, tuple[type, tuple[int, int]]] = {}


def input_shape_of(model: Any) -> tuple[int, int, int]:
    """The (height, width, channels) of a model's images, which is its `input_shape`.

    Raises:
        TypeError: if it has none, or this is something else.
    """
    name = type(model).__name__
    if not hasattr(model, "input_shape"):
        raise TypeError(f"{name} has no input_shape: set it to the (height, width, channels) it takes")
    try:
        height, width, channels = map(operator.index, model.input_shape)
    except (TypeError, ValueError):
        raise TypeError(
            f"the input_shape of this {name} is {model.input_shape!r}: set it to the (height, width, channels) it takes"
        ) from None
    return height, width, channels


def check_images(model: Any, x: Any, multiples: tuple[int, int] | None = None):
    """Refuses what is not a batch of floating-point images that a model was built for.

    Args:
        model: the model, whose `input_shape` is (height, width, channels).
        x: what it is called with.
        multiples: the sides are multiples of these, with at least one; None: those of `input_shape`.

    Raises:
        TypeError: if `x` is not an array of floating-point numbers.
        ValueError: if it is not a batch (N, H, W, C), or its images have another size or other channels.
    """
    check_floating(x, "images")
    *size, channels = model.input_shape

    def fits(sides) -> bool:
        if multiples is None:
            return tuple(sides) == tuple(size)
        return all(side > 0 and side % multiple == 0 for side, multiple in zip(sides, multiples, strict=True))

    if x.ndim != 4 or x.shape[3] != channels or not fits(x.shape[1:3]):
        height, width = size if multiples is None else (_multiple(*one) for one in zip("HW", multiples, strict=True))
        raise ValueError(
            f"{type(model).__name__} takes images (N, H, W, C) of shape (N, {height}, {width}, {channels}) and was "
            f"called with {x.shape}: {_advice(model, x.shape, channels, fits)}"
        )


def _multiple(side: str, multiple: int) -> str:
    return side if multiple == 1 else f"{multiple}·{side.lower()}"


def _advice(model, shape, channels, fits) -> str:
    if len(shape) == 3:
        return "the first axis is the batch, which x[None] makes of one image"
    if len(shape) != 4:
        return "the axes are batch, height, width, channels"
    _, height, width, last = shape
    if height == channels != last:
        return "these seem to be (N, C, H, W), which jnp.transpose(x, (0, 2, 3, 1)) brings in order"
    if last != channels:
        return f"build it with in_features={last}" + (
            f", or repeat grey images with jnp.repeat(x, {channels}, axis=-1)" if last == 1 else ""
        )
    published = [
        name for name, (kind, size) in PUBLISHED_SIZES.items() if kind is type(model) and size == (height, width)
    ]
    if published:
        return f"of list_models(), {' and '.join(published)} {'take' if len(published) > 1 else 'takes'} this size"
    return "resize the images, or build it for this size"
