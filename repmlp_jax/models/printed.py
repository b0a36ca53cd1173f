"""What `print` shows of a model: its blocks."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.fusing.report import count_parameters, table


class PrintedByBlocks(nnx.Module):
    """A model that `print` shows as a table of its blocks; its `repr` shows every array, as Flax does."""

    input_shape: tuple[int, ...]

    def __str__(self) -> str:
        """The blocks with their classes and numbers of parameters, in the order in which Flax holds them."""
        rows = [(dotted(path), type(block).__name__, f"{count_parameters(block):,}") for path, block in _blocks(self)]
        size = "×".join(map(str, self.input_shape))
        head = f"{type(self).__name__} for images of {size}, {count_parameters(self):,} parameters"
        return f"{head}\n{table([('block', 'kind', 'parameters'), *rows])}"


def _blocks(model: Any, place: tuple = ()) -> Iterator[tuple[tuple, nnx.Module]]:
    """The outermost modules in a model and in its lists, with their paths."""
    for name, child in enumerate(model) if isinstance(model, nnx.List) else vars(model).items():
        if isinstance(child, nnx.List):
            yield from _blocks(child, (*place, name))
        elif isinstance(child, nnx.Module):
            yield (*place, name), child
