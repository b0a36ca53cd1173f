"""Conversion of weights from and to the official PyTorch layout.

A table for each class (`official_names.py`) pairs the parts of a module with their official names. A part that is a
module has its own table; a part that is an array has a pattern of its axes. The tables are read in both directions, so
a round trip is exact.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from repmlp_jax.blocks.repmlpnet import RepMLPNetBlock
from repmlp_jax.fusing.fuse import dotted, fused_form, is_fusable, overrides_call, replace_modules, stack_shape
from repmlp_jax.interop.mmpretrain import is_mmpretrain, official_keys
from repmlp_jax.interop.official_names import OfficialArray, official_names
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.state import Leaf, arrays_of, head_places, load_state


def from_torch(model: nnx.Module, state_dict: Mapping[str, np.ndarray], *, head: str = "load") -> nnx.Module:
    """Loads an official state_dict, or mmpretrain's for a RepMLPNet, into a model.

    A trained model also takes the official deployed layout; the RepMLP blocks of the result are then fused. (It keeps
    more norms of RepMLPNet than `fuse_params` does, which can fold them afterwards.)

    Args:
        model: a module with an official layout; it may be abstract (`nnx.eval_shape`).
        state_dict: official key → array (anything that NumPy can view).
        head: "load", or "skip" to keep the model's classifier, which may have another number of classes.

    Returns:
        A new model; the given one stays as it is.

    Raises:
        TypeError: if there is no official layout for this module.
        ValueError: if keys are missing or left over, a shape differs, or a dtype would lose precision; one message
            lists all. Or if `head="skip"` and the model has no classifier, or an abstract one.

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
    state_dict = official_keys(state_dict) if is_mmpretrain(state_dict) else state_dict
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    leaves = official_leaves(model)
    deployed_keys = {key for key in arrays if key.endswith("fc3.bias")}
    if deployed_keys and not deployed_keys & {leaf.key for leaf in leaves.values()}:
        model = nnx.eval_shape(deployed, model)
        leaves = official_leaves(model)
    kept = _places_to_keep(model) if head == "skip" else ()
    return load_state(model, arrays, "state_dict", leaves=leaves, kept=kept)


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """The weights and statistics of a model as an official state_dict: official key → NumPy array.

    A trained model is returned in the training-time layout, a model of `deployed` in the deployed layout.

    Raises:
        TypeError: if there is no official layout for this module, or for its fused form; or if a class overrides the
            `__call__` of one that has an official layout.
        ValueError: if it is a stack of modules.
    """
    _check_calls(model)
    leaves = official_leaves(model)
    state_dict = {}
    for place, variable in nnx.to_flat_state(nnx.state(model, weights)):
        array = leaves[place].stored(np.asarray(variable[...]))
        state_dict[leaves[place].key] = (
            array.astype(np.int64) if array.dtype == np.int32 else np.ascontiguousarray(array)
        )
    return state_dict


def deployed(model: nnx.Module) -> nnx.Module:
    """Fuses a model as far as the official code does; the result is in evaluation mode.

    For v1 this equals `fuse_params`; of a RepMLPNet the official conversion fuses only the RepMLP blocks.
    """
    is_v2 = any(isinstance(node, RepMLPNetBlock) for _, node in nnx.iter_graph(model))
    chosen = (lambda module: isinstance(module, RepMLPNetBlock)) if is_v2 else is_fusable
    result = replace_modules(model, chosen, fused_form)
    result.eval()
    return result


def _check_calls(model):
    """Raises TypeError if a module computes something else than the module of the official code."""
    for path, module in nnx.iter_graph(model):
        if isinstance(module, nnx.Module) and (stack := stack_shape(module)):
            raise ValueError(f"to_torch: {dotted(path)} is a stack of {stack} modules: take one of them")
        base: Any = next((kind for kind in type(module).__mro__ if kind in official_names.registry), object)
        if base is not object and overrides_call(type(module), base):
            raise TypeError(
                f"to_torch: {dotted(path)} is a {type(module).__name__}, whose __call__ overrides that of "
                f"{base.__name__}; the official PyTorch code has no such module and would compute something else"
            )


def _places_to_keep(model) -> set[tuple]:
    places = head_places(model)
    if not places:
        raise ValueError(f'head="skip": a {type(model).__name__} has no classifier')
    if any(isinstance(arrays_of(model)[dotted(place)], jax.ShapeDtypeStruct) for place in places):
        raise ValueError('head="skip" keeps the classifier, but that of an abstract model has no values; build it')
    return places


def official_leaves(model) -> dict[tuple, Leaf]:
    """Path of every array of a model → its official key and axes.

    Raises:
        TypeError: if an array has no official name.
    """
    leaves = dict(_walk(model, (), ""))
    without = [place for place, _ in nnx.to_flat_state(nnx.state(model, weights)) if place not in leaves]
    if without:
        raise TypeError(
            f"{type(model).__name__} has no official PyTorch layout for {'.'.join(map(str, without[0]))}"
            + (f" and {len(without) - 1} more" if len(without) > 1 else "")
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
                yield (*place, *parts), Leaf(prefix + official.name, official.axes)
            else:
                yield from _walk(part, (*place, *parts), prefix + official)
