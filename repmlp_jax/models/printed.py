"""What `print` shows of a model: its blocks."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.fusing.order import own_order
from repmlp_jax.fusing.report import count_parameters, html_table, table


class PrintedByBlocks(nnx.Module):
    """A model that `print` and notebooks show as a table of its blocks; its `repr` shows every array, as Flax does."""

    input_shape: tuple[int, ...]

    def __str__(self) -> str:
        """The blocks with their classes and numbers of parameters, in the order in which the model calls them."""
        title, rows = self._table()
        return f"{title}\n{table(rows)}"

    def _repr_html_(self) -> str:
        """The same, as a notebook shows it."""
        title, rows = self._table()
        return f"<p>{title}</p>{html_table(rows)}"

    def _table(self):
        order = own_order(self)
        blocks = sorted(_blocks(self), key=lambda row: order(row[0]))
        rows = [(dotted(path), type(block).__name__, f"{count_parameters(block):,}") for path, block in blocks]
        size = "×".join(map(str, self.input_shape))
        title = f"{type(self).__name__} for images of {size}, {count_parameters(self):,} parameters"
        return title, [("block", "kind", "parameters"), *rows]


def _blocks(model: Any, place: tuple = ()) -> Iterator[tuple[tuple, nnx.Module]]:
    """The outermost modules in a model and in its lists, with their paths."""
    for name, child in enumerate(model) if isinstance(model, nnx.List) else vars(model).items():
        if isinstance(child, nnx.List):
            yield from _blocks(child, (*place, name))
        elif isinstance(child, nnx.Module):
            yield (*place, name), child
