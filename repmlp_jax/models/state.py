"""The weights and statistics of a model by name, and loading them."""

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import einops
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.models.randomness import seeded, weights


class Leaf(NamedTuple):
    """The key of a stored array, and its axes in the model and in storage as an einops pattern.

    `sizes` are those of the axes that the pattern joins.
    """

    key: str
    axes: str = "... -> ..."
    sizes: Mapping[str, int] = MappingProxyType({})

    def stored(self, array: Any) -> Any:
        """Rearranges an array of the model for storage."""
        return einops.rearrange(array, self.axes, **self._sizes(array.shape))

    def stored_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in storage of an array with this shape in the model."""
        return self.stored(np.broadcast_to(np.False_, shape)).shape

    def restored(self, array: Any, shape: tuple[int, ...]) -> Any:
        """Rearranges a stored array for the model, where it has this shape."""
        ours, theirs = self.axes.split(" -> ")
        return einops.rearrange(array, f"{theirs} -> {ours}", **self._sizes(shape))

    def _sizes(self, shape) -> dict[str, int]:
        axes = re.findall(r"\(.*?\)|\S+", self.axes.split(" -> ")[0])
        return {name: size for name, size in zip(axes, shape, strict=False) if name.isidentifier()} | dict(self.sizes)


class MisfitError(ValueError):
    """Arrays that do not fit a model.

    Attributes:
        problems: all that does not fit; the message names five.
        guess: what the arrays may be of; empty if nobody knows.
    """

    SHOWN = 5

    def __init__(self, what: str, problems: Sequence[str]):
        super().__init__(what, problems)
        self.what = what
        self.problems = list(problems)
        self.guess = ""

    def __str__(self) -> str:
        lines = [f"{self.what}:", *(f"  {problem}" for problem in self.problems[: self.SHOWN])]
        if (more := len(self.problems) - self.SHOWN) > 0:
            lines.append(f"  and {more} more: the error's `problems`, or `repmlp-jax import --all-problems`, has all")
        return "\n".join(lines + ([self.guess] if self.guess else []))


def arrays_of(model: nnx.Module) -> dict[str, Any]:
    """Dotted path → weight or statistic of a model, which may be abstract."""
    flat = nnx.to_flat_state(nnx.state(model, weights))
    return {dotted(place): leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for place, leaf in flat}


def filled(leaf: Any, array: Any) -> Any:
    """A leaf of a state, which is a Variable or, as the mask of Flax's layers, an array, with another array."""
    return leaf.replace(array) if isinstance(leaf, nnx.Variable) else array


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
        MisfitError: if arrays are missing or left over, a shape differs, or a value would change in the model's dtype.
            It is a ValueError that has all problems.
    """
    graphdef, state, *rest = nnx.split(seeded(model), weights, ...)
    variables = nnx.to_flat_state(state)
    leaves = leaves or {place: Leaf(dotted(place)) for place, _ in variables}
    misfits, missing, loaded = [], [], []
    for place, here in variables:
        leaf, shape = leaves[place], here.shape
        array, stored_shape = arrays.get(leaf.key), leaf.stored_shape(shape)
        if place in kept:
            pass
        elif array is None:
            missing.append(f"missing: {leaf.key}")
        elif array.shape != stored_shape:
            hint = '; head="skip" leaves it as it is (init_head in recipes)' if place in head_places(model) else ""
            misfits.append(f"{leaf.key} has shape {array.shape}, the model {stored_shape}{hint}")
        elif misfit := _misfit(array, here):
            misfits.append(f"{leaf.key} holds {misfit}")
        else:
            here = filled(here, jnp.asarray(leaf.restored(array, shape), here.dtype))
        loaded.append((place, here))
    unused = [f"not used by the model: {key}" for key in arrays.keys() - {leaf.key for leaf in leaves.values()}]
    if problems := sorted(misfits) + sorted(missing) + sorted(unused):
        raise MisfitError(f"{source} does not fit {type(model).__name__}", problems)
    return nnx.merge(graphdef, nnx.from_flat_state(loaded), *rest, copy=True)


def head_places(model: nnx.Module) -> set[tuple]:
    """The paths of the arrays of the model's classifier; empty if it has none."""
    head: Any = getattr(model, "head", None)
    place, linear = (("head", "linear"), head.linear) if hasattr(head, "linear") else (("head",), head)
    return {(*place, name) for name in ("kernel", "bias")} if isinstance(linear, nnx.Linear) else set()


def _misfit(array, variable) -> str:
    """What an array holds that a variable cannot hold; empty if no value changes by the cast.

    Counters may come as other numbers: PyTorch's are int64, and floats in a model that was cast to half precision.
    """
    both = array.dtype, variable.dtype
    is_counter = isinstance(variable, nnx.BatchStat) and jnp.issubdtype(variable.dtype, jnp.integer)
    if all(jnp.issubdtype(dtype, jnp.integer) for dtype in both) or (
        is_counter and jnp.issubdtype(array.dtype, jnp.floating)
    ):
        lowest, highest = 0 if is_counter else np.iinfo(variable.dtype).min, np.iinfo(variable.dtype).max
        values = np.asarray(array)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            values = values.astype(np.float64)  # `highest` is infinite in float16
        wrong = values[~((values >= lowest) & (values <= highest) & (values == np.floor(values)))]
        return f"{wrong[0]}, the model whole numbers from {lowest} to {highest}" if wrong.size else ""
    if array.dtype == variable.dtype or (
        all(jnp.issubdtype(dtype, jnp.floating) for dtype in both) and np.can_cast(*both, "safe")
    ):
        return ""
    return f"{array.dtype}, the model {variable.dtype}: cast one of them"
