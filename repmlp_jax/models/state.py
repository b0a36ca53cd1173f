"""The weights and statistics of a model by name, and loading them."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import einops
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.fusing.fuse import dotted
from repmlp_jax.models.randomness import seeded, weights


class Leaf(NamedTuple):
    """The key of a stored array, and its axes in the model and in storage as an einops pattern."""

    key: str
    axes: str = "... -> ..."

    def stored(self, array: Any) -> Any:
        """Rearranges an array of the model for storage."""
        return einops.rearrange(array, self.axes)

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in storage of an array with this shape in the model."""
        return self.stored(np.broadcast_to(np.False_, shape)).shape

    def restored(self, array: Any, shape: tuple[int, ...]) -> Any:
        """Rearranges a stored array for the model, where it has this shape."""
        ours, theirs = self.axes.split(" -> ")
        sizes = {name: size for name, size in zip(ours.split(), shape, strict=False) if name.isidentifier()}
        return einops.rearrange(array, f"{theirs} -> {ours}", **sizes)


def arrays_of(model: nnx.Module) -> dict[str, Any]:
    """Dotted path → weight or statistic of a model, which may be abstract."""
    return {dotted(place): variable.get_value() for place, variable in nnx.to_flat_state(nnx.state(model, weights))}


def load_state(
    model: nnx.Module,
    arrays: Mapping[str, Any],
    source: str,
    *,
    leaves: Mapping[tuple, Leaf] | None = None,
    kept: Collection[tuple] = (),
) -> nnx.Module:
    """Loads stored weights and statistics into a model; abstract random streams are seeded.

    Args:
        model: the model; it is not changed and may be abstract.
        arrays: key → array.
        source: origin of the arrays, for messages.
        leaves: path of each array of the model → its key and axes in storage; None: as in `arrays_of`.
        kept: paths of arrays that the model keeps, whether or not they are stored.

    Returns:
        A new model.

    Raises:
        ValueError: if arrays are missing or left over, a shape differs, or a dtype would lose precision; one message
            lists all.
    """
    graphdef, state, *rest = nnx.split(seeded(model), weights, ...)
    variables = nnx.to_flat_state(state)
    leaves = leaves or {place: Leaf(dotted(place)) for place, _ in variables}
    problems = [f"not used by the model: {key}" for key in arrays.keys() - {leaf.key for leaf in leaves.values()}]
    loaded = []
    for place, here in variables:
        leaf, shape = leaves[place], here.shape
        array, stored_shape = arrays.get(leaf.key), leaf.stored_shape(shape)
        if place in kept:
            pass
        elif array is None:
            problems.append(f"missing: {leaf.key}")
        elif array.shape != stored_shape:
            hint = '; head="skip" leaves it as it is (init_head in recipes)' if place in head_places(model) else ""
            problems.append(f"{leaf.key} has shape {array.shape}, the model {stored_shape}{hint}")
        elif not _fits(array, here.dtype):
            problems.append(f"{leaf.key} holds {array.dtype}, the model {here.dtype}: cast one of them")
        else:
            here = here.replace(jnp.asarray(leaf.restored(array, shape), here.dtype))
        loaded.append((place, here))
    if problems:
        raise ValueError(f"{source} does not fit {type(model).__name__}:\n  " + "\n  ".join(sorted(problems)))
    return nnx.merge(graphdef, nnx.from_flat_state(loaded), *rest, copy=True)


def head_places(model: nnx.Module) -> set[tuple]:
    """The paths of the arrays of the model's classifier; empty if it has none."""
    head: Any = getattr(model, "head", None)
    place, linear = (("head", "linear"), head.linear) if hasattr(head, "linear") else (("head",), head)
    return {(*place, name) for name in ("kernel", "bias")} if isinstance(linear, nnx.Linear) else set()


def _fits(array, dtype):
    """Whether a cast is exact; PyTorch's int64 batch counters fit our int32 counters if their values do."""
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(dtype, np.integer):
        return np.all(array <= np.iinfo(dtype).max)
    return np.can_cast(array.dtype, dtype, "safe")
