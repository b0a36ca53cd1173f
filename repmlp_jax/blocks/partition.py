"""Splitting a feature map into partitions and joining them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


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
        pairs = list(zip(self.image_size, self.partition_size, strict=True))
        if any(whole % part for whole, part in pairs) and not self.pad:
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

    def split(self, x: Float[Array, "N H W C"]) -> Float[Array, "N down across h w C"]:
        """Splits maps into their partitions."""
        (down, across), (h, w) = self.counts, self.partition_size
        margins = [
            (0, count * part - whole) for count, part, whole in zip((down, across), (h, w), x.shape[1:3], strict=True)
        ]
        x = jnp.pad(x, [(0, 0), *margins, (0, 0)])
        return x.reshape(x.shape[0], down, h, across, w, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)

    def join(self, y: Float[Array, "M h w O"]) -> Float[Array, "N H W O"]:
        """Joins the partitions of all maps."""
        (down, across), (height, width) = self.counts, self.image_size
        _, h, w, features = y.shape
        y = y.reshape(-1, down, across, h, w, features).transpose(0, 1, 3, 2, 4, 5)
        return y.reshape(-1, down * h, across * w, features)[:, :height, :width]

    def check(self, x: Array, features: int):
        """Raises TypeError or ValueError unless `x` is a batch of float maps of this size with `features` channels."""
        check_floating(x, "maps")
        expected = (*self.image_size, features)
        if x.ndim != 4 or x.shape[1:] != expected:
            raise ValueError(
                f"built for maps of (height, width, channels) {expected} and called with an array of shape "
                f"{x.shape}; the first axis is the batch"
            )


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
