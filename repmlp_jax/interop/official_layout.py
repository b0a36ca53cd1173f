"""The official layouts of a model, trained and deployed: the key and axes of every array."""

from collections.abc import Iterator
from typing import Any

from flax import nnx

from repmlp_jax.blocks.repmlpnet import RepMLPNetBlock
from repmlp_jax.fusing.fuse import fused_form, is_fusable
from repmlp_jax.fusing.modules import dotted, replace_modules
from repmlp_jax.interop.official_names import OfficialArray, official_names
from repmlp_jax.listing import listed
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.state import Leaf

COUNTER = "num_batches_tracked"


def deployed(model: nnx.Module) -> nnx.Module:
    """Fuses a model as far as the official code does; the result is in evaluation mode.

    For v1 this equals `fuse_params`; of a RepMLPNet the official conversion fuses only the RepMLP blocks.
    """
    is_v2 = any(isinstance(node, RepMLPNetBlock) for _, node in nnx.iter_graph(model))
    chosen = (lambda module: isinstance(module, RepMLPNetBlock)) if is_v2 else is_fusable
    result = replace_modules(model, chosen, fused_form)
    result.eval()
    return result


def official_leaves(model: nnx.Module) -> dict[tuple, Leaf]:
    """Path of every array of a model → its official key and axes.

    Raises:
        TypeError: if an array has no official name.
    """
    leaves = dict(_walk(model, (), ""))
    without = [place for place, _ in nnx.to_flat_state(nnx.state(model, weights)) if place not in leaves]
    if without:
        raise TypeError(
            f"{type(model).__name__} has no official PyTorch layout for {listed(map(dotted, without), shown=1)}"
        )
    return leaves


def _walk(module, place, prefix) -> Iterator[tuple[tuple, Leaf]]:
    for name, official in official_names(module).items():
        part: Any = module
        parts: tuple[Any, ...] = tuple(int(key) if key.isdecimal() else key for key in name.split("."))
        for key in parts:
            part = part[key] if isinstance(part, nnx.List | nnx.Dict) else getattr(part, key, None)
            if part is None:
                break
        else:
            if isinstance(official, OfficialArray):
                yield (*place, *parts), Leaf(prefix + official.name, official.axes, official.sizes)
            else:
                yield from _walk(part, (*place, *parts), prefix + official)


def official_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """Official key → shape in storage, of all weights and statistics but the counters of batches."""
    leaves = official_leaves(model)
    flat = nnx.to_flat_state(nnx.state(model, weights))
    shapes = {leaves[place].key: leaves[place].stored_shape(variable.shape) for place, variable in flat}
    return {key: shape for key, shape in shapes.items() if not key.endswith(COUNTER)}
