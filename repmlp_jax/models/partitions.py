"""How the blocks of a model split their maps, which the shapes of their weights do not show."""

from collections.abc import Collection
from typing import NamedTuple

from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.models.state import MisfitError


class Partitions(NamedTuple):
    """The partitions of a block.

    Attributes:
        size: (h, w) of a partition.
        counts: number of partitions down and across; None in a block that takes maps of any size.
    """

    size: tuple[int, ...]
    counts: tuple[int, ...] | None


def partitions_of(model: nnx.Module) -> dict[str, Partitions]:
    """Dotted path → partitions of each block of a model that splits its map."""
    found = {}
    for path, node in nnx.iter_graph(model):
        if not isinstance(node, nnx.Module):
            continue
        if partitioning := getattr(node, "partitioning", None):
            found[dotted(path)] = Partitions(tuple(partitioning.partition_size), partitioning.counts)
        elif size := getattr(node, "partition_size", None):
            found[dotted(path)] = Partitions(tuple(size), None)
    return found


def check_same_partitions(
    model: nnx.Module, stored: nnx.Module, source: str, compared: Collection[str] = Partitions._fields
):
    """Refuses weights of a model whose blocks split their maps in another way.

    Args:
        model: the model to load into.
        stored: the model that has the weights.
        source: origin of the weights, for the message.
        compared: the attributes of `Partitions` that have to be equal.

    Raises:
        MisfitError: names the blocks that differ.
    """
    theirs = partitions_of(stored)
    problems = [
        f"{path} has partitions of {name} {getattr(theirs[path], name)}, the model {getattr(ours, name)}"
        for path, ours in partitions_of(model).items()
        for name in compared
        if path in theirs and getattr(theirs[path], name) != getattr(ours, name)
    ]
    if problems:
        raise MisfitError(f"{source} does not fit {type(model).__name__}", problems)
