"""Splitting a feature map into partitions and joining them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from repmlp_jax.blocks import split_maps


@dataclasses.dataclass(frozen=True)
class Partitioning:
    """The size of a feature map and of its partitions.

    Args:
        image_size: (height, width) of the feature map.
        partition_size: (height, width) of a partition.
        pad: zero-pad a map that partitions do not divide at its bottom and right, and crop the output.

    Raises:
        ValueError: if a size is not positive, or the partitions do not divide the map and `pad` is off.
    """

    image_size: Sequence[int]
    partition_size: Sequence[int]
    pad: bool = False

    def __post_init__(self):
        for name in ("image_size", "partition_size"):
            size = tuple(getattr(self, name))
            if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
                raise ValueError(f"{name} must be (height, width), two positive integers, not {size}")
            object.__setattr__(self, name, size)
        if not self.pad and not self.is_exact:
            pairs = list(zip(self.image_size, self.partition_size, strict=True))
            maps = " and ".join(f"{_nearest_multiples(whole, part)}" for whole, part in pairs)
            parts = " and ".join(f"{_nearest_divisors(whole, part)}" for whole, part in pairs)
            raise ValueError(
                f"partition_size {self.partition_size} does not divide image_size {self.image_size}. The nearest "
                f"sizes that work are, for the map's height and width, {maps}; for the partition's, {parts}. "
                f"pad=True keeps both, with zeros around the map."
            )

    @property
    def counts(self) -> tuple[int, int]:
        """Number of partitions down and across."""
        (height, width), (h, w) = self.image_size, self.partition_size
        return -(-height // h), -(-width // w)

    @property
    def is_exact(self) -> bool:
        """Whether the partitions divide the map, without padding."""
        return all(whole % part == 0 for whole, part in zip(self.image_size, self.partition_size, strict=True))

    def split(self, x: Float[Array, "N H W C"], groups: int = 1) -> Float[Array, "N m p g c"]:
        """Splits maps into m partitions of p pixels, and their channels into groups."""
        (down, across), (h, w) = self.counts, self.partition_size
        margins = [
            (0, count * part - whole) for count, part, whole in zip((down, across), (h, w), x.shape[1:3], strict=True)
        ]
        x = jnp.pad(x, [(0, 0), *margins, (0, 0)])
        return split_maps.split(x, self.counts, (h, w), groups)

    def join(self, y: Float[Array, "N m p g c"]) -> Float[Array, "N H W C"]:
        """The inverse of `split`."""
        height, width = self.image_size
        return split_maps.join(y, self.counts, tuple(self.partition_size))[:, :height, :width]

    def check(self, x: Array, features: int):
        """Raises TypeError or ValueError unless `x` is a batch of float maps of this size with `features` channels."""
        check_floating(x, "maps")
        expected = (*self.image_size, features)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(
                f"built for maps of (height, width, channels) {expected} and called with an array of shape "
                f"{x.shape}; the first axis is the batch"
            )


class Layout(NamedTuple):
    """How a layer splits its map.

    Attributes:
        partitioning: sizes of the map and its partitions.
        groups: groups of channels.
    """

    partitioning: Partitioning
    groups: int

    def split(self, x: Float[Array, "N H W C"]) -> Float[Array, "N m p g c"]:
        """Splits maps into partitions, and their channels into groups."""
        return self.partitioning.split(x, self.groups)

    def join(self, y: Float[Array, "N m p g c"]) -> Float[Array, "N H W C"]:
        """The inverse of `split`."""
        return self.partitioning.join(y)


def check_floating(x: Any, what: str):
    """Raises TypeError unless `x`, which holds `what`, is an array of floating-point numbers."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        found = type(x).__name__ if dtype is None else dtype
        raise TypeError(f"takes floating-point {what} (N, H, W, C), not {found}: convert and normalise images first")


def _nearest_multiples(whole: int, part: int) -> list[int]:
    down = whole - whole % part
    return [size for size in sorted({down, -(-whole // part) * part}) if size]


def _nearest_divisors(whole: int, part: int) -> list[int]:
    divisors = [size for size in range(1, whole + 1) if whole % size == 0]
    below = max(size for size in divisors if size <= part)
    above = min((size for size in divisors if size >= part), default=below)
    return sorted({below, above})
