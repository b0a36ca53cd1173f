"""What weights may be of that do not fit a model."""

from collections.abc import Collection, Mapping

import numpy as np
from flax import nnx

from repmlp_jax.interop.official_layout import COUNTER, deployed, official_leaves, official_shapes
from repmlp_jax.models.randomness import abstract
from repmlp_jax.models.registry import MODELS
from repmlp_jax.models.repmlpnet import RepMLPNet
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.models.state import head_places

# The first convolution, which all nets of a class have in both layouts.
FIRST = {"conv_embedding.conv.weight": RepMLPNet, "stage0.0.conv.weight": RepMLPResNet}


def likely_origin(model: nnx.Module, arrays: Mapping[str, np.ndarray]) -> str:
    """A sentence on what a state_dict may be of that does not fit a model; it compares keys and shapes.

    Published models are built, without weights, which takes seconds.
    """
    ours = official_shapes(model)
    theirs = {key: array.shape for key, array in arrays.items() if not key.endswith(COUNTER)}
    if not theirs:
        return "There are no weights at all."
    if prefix := _prefix(ours, theirs):
        return f"The model's keys are there behind {prefix!r}: pass what has this prefix, without it."
    if prefix := _prefix(theirs, ours):
        return f"The keys are those of a part of the model, which it has behind {prefix!r}: load them into that part."
    if any(key.endswith("fc3.bias") for key in ours) and any(key.endswith("fc3_bn.weight") for key in theirs):
        return "The weights are of the trained layout, and the model is fused: load them into the trained one."
    if name := _published(theirs):
        return f"The weights have the shapes of {name}."
    shared, kind = len(ours.keys() & theirs.keys()), type(model).__name__
    if not shared:
        return f"None of the {len(theirs)} keys is the model's: the weights are of another architecture."
    if ours.keys() == theirs.keys():
        return f"All keys are the model's: the weights are of a {kind} with other arguments."
    return f"{shared} of the {len(theirs)} keys are the model's: perhaps a {kind} with other arguments."


def _prefix(inner: Collection[str], outer: Collection[str]) -> str:
    """What stands before all keys of `inner` in `outer`; empty if nothing does."""
    longest = max(inner, key=len, default="")
    prefixes = (key.removesuffix(longest) for key in outer if key.endswith(f".{longest}"))
    return next((prefix for prefix in prefixes if all(prefix + key in outer for key in inner)), "")


def _published(theirs) -> str:
    classes = [model_class for key, model_class in FIRST.items() if key in theirs]
    is_deployed = any(key.endswith("fc3.bias") for key in theirs)
    for name, (model_class, arguments) in MODELS.items():
        if model_class not in classes:
            continue
        model = abstract(model_class, **arguments)
        model = nnx.eval_shape(deployed, model) if is_deployed else model
        leaves, shapes = official_leaves(model), official_shapes(model)
        head = {leaves[place].key for place in head_places(model)}
        if shapes.keys() == theirs.keys() and all(shapes[key] == theirs[key] for key in shapes.keys() - head):
            classes_differ = any(shapes[key] != theirs[key] for key in head)
            return f"{name} with num_classes={theirs[min(head)][0]}" if classes_differ else name
    return ""
