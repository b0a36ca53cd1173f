"""Conversion of weights from and to the official PyTorch layout.

A table for each class (`official_names.py`) pairs the parts of a module with their official names. A part that is a
module has its own table; a part that is an array has a pattern of its axes. The tables are read in both directions, so
a round trip is exact.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from repmlp_jax.fusing.finite import check_finite
from repmlp_jax.fusing.fuse import check_concrete, check_module, overridden, stack_shape
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.interop.mmpretrain import is_mmpretrain, official_keys
from repmlp_jax.interop.official_layout import COUNTER, deployed, official_leaves
from repmlp_jax.interop.official_names import official_names
from repmlp_jax.interop.origin import likely_origin
from repmlp_jax.interop.plain_keys import with_plain_keys
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.state import MisfitError, arrays_of, head_places, load_state


def from_torch(model: nnx.Module, state_dict: Mapping[str, np.ndarray], *, head: str = "load") -> nnx.Module:
    """Loads an official state_dict, or mmpretrain's for a RepMLPNet, into a model.

    A trained model also takes the official deployed layout; the RepMLP blocks of the result are then fused. (It keeps
    more norms of RepMLPNet than `fuse_params` does, which can fold them afterwards.)

    Keys may have what wrappers add to them: "module." before all, once or several times, "_orig_mod." (torch.compile)
    and the like anywhere. Ignored are `total_ops` and `total_params` (thop), `n_averaged` and `steps` (averaged
    models) and safetensors' `__metadata__`. A missing `num_batches_tracked`, as in files of PyTorch before 0.4.1, is 0.

    Args:
        model: a module with an official layout; it may be abstract (`nnx.eval_shape`).
        state_dict: official key → array (anything that NumPy can view).
        head: "load", or "skip" to keep the model's classifier, which may have another number of classes, or none.

    Returns:
        A new model; the given one stays as it is.

    Raises:
        TypeError: if there is no official layout for this module, or `state_dict` is not a mapping of names to arrays.
        ValueError: if keys are missing or left over, a shape differs, or a value would change in the model's dtype; the
            message names five of these, and `problems` of the error has all. If a value is NaN or infinite. Or if
            `head="skip"` and the model has no classifier, or an abstract one.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, from_torch, to_torch
        >>> block = RepMLP(4, 4, image_size=(6, 6), partition_size=(3, 3), rngs=nnx.Rngs(0))
        >>> state_dict = to_torch(block)  # or load_torch_file("weights.pth")
        >>> state_dict["fc3.weight"].shape
        (36, 36, 1, 1)
        >>> block = from_torch(block, state_dict)
    """
    if head not in ("load", "skip"):
        raise ValueError(f'head={head!r} is neither "load" nor "skip"')
    check_module(model, "from_torch")
    leaves = official_leaves(model)
    arrays = _arrays(state_dict)
    kept = _places_to_keep(model) if head == "skip" else set()
    try:
        arrays = official_keys(arrays) if is_mmpretrain(arrays) else arrays
        deployed_keys = {key for key in arrays if key.endswith("fc3.bias")}
        if deployed_keys and not deployed_keys & {leaf.key for leaf in leaves.values()}:
            # A classifier that is kept has values, so the model has.
            model = deployed(model) if kept else nnx.eval_shape(deployed, model)
            leaves = official_leaves(model)
        if head == "skip":
            prefixes = _classifier_prefixes(model)
            arrays = {key: array for key, array in arrays.items() if not key.startswith(prefixes)}
        counters = [leaf.key for leaf in leaves.values() if leaf.key.endswith(COUNTER)]
        arrays = dict.fromkeys(counters, np.zeros((), np.int64)) | arrays
        loaded = load_state(model, arrays, "state_dict", leaves=leaves, kept=kept)
    except MisfitError as error:
        if len(error.problems) > error.SHOWN:
            error.guess = likely_origin(model, arrays)
        raise
    check_finite({leaf.key: arrays[leaf.key] for place, leaf in leaves.items() if place not in kept}, "state_dict")
    return loaded


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """The weights and statistics of a model as an official state_dict: official key → NumPy array.

    A trained model is returned in the training-time layout, a model of `deployed` in the deployed layout.

    Raises:
        TypeError: if it is not a module, there is no official layout for it or for its fused form, or a class overrides
            the `__call__` of one that has an official layout.
        ValueError: if it is a stack of modules.
    """
    check_module(model, "to_torch")
    check_concrete(model, "to_torch")
    _check_calls(model)
    leaves = official_leaves(model)
    state_dict = {}
    for place, variable in nnx.to_flat_state(nnx.state(model, weights)):
        array = leaves[place].stored(np.asarray(variable[...]))
        state_dict[leaves[place].key] = (
            array.astype(np.int64) if array.dtype == np.int32 else np.ascontiguousarray(array)
        )
    return state_dict


def _arrays(state_dict) -> dict[str, np.ndarray]:
    """The arrays of a state_dict as NumPy's, by their plain keys."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict has to be a mapping of official key → array, and it is a {type(state_dict).__name__}; "
            f"load_torch_file reads one from a file"
        )
    if unnamed := [key for key in state_dict if not isinstance(key, str)]:
        raise TypeError(f"the keys of state_dict have to be names, and {unnamed[0]!r} is a {type(unnamed[0]).__name__}")
    return {key: _array(key, value) for key, value in with_plain_keys(state_dict).items()}


def _array(key, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except Exception as error:  # PyTorch's tensors raise various
        raise TypeError(f"state_dict[{key!r}] cannot become a NumPy array: {error}") from error
    if array.dtype.kind in "OSU":
        hint = ": if that is the state_dict, pass it" if isinstance(value, Mapping) else ""
        raise TypeError(f"state_dict[{key!r}] is not an array but a {type(value).__name__}{hint}")
    return array


def _check_calls(model):
    """Raises TypeError if a module computes something else than the module of the official code."""
    for path, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module) and (stack := stack_shape(module)):
            raise ValueError(f"to_torch: {dotted(path)} is a stack of {stack} modules: take one of them")
        base = overridden(type(module), lambda kind: kind is not object and kind in official_names.registry)
        if base:
            raise TypeError(
                f"to_torch: {dotted(path)} is a {type(module).__name__}, whose __call__ overrides that of "
                f"{base.__name__}; the official PyTorch code has no such module and would compute something else"
            )


def _places_to_keep(model) -> set[tuple]:
    places = head_places(model)
    if not places and not _classifier_prefixes(model):
        raise ValueError(f'head="skip": a {type(model).__name__} has no classifier')
    if any(isinstance(arrays_of(model)[dotted(place)], jax.ShapeDtypeStruct) for place in places):
        raise ValueError('head="skip" keeps the classifier, but that of an abstract model has no values; build it')
    return places


def _classifier_prefixes(model) -> tuple[str, ...]:
    """How the official keys of a model's classifier begin; without a head, those of the whole head."""
    names: dict[str, Any] = official_names(model)
    if not hasattr(model, "head"):
        return tuple(prefix for name, prefix in names.items() if name.partition(".")[0] == "head")
    prefix = names.get("head.linear", names.get("head"))
    return () if prefix is None else (prefix,)
