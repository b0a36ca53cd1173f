"""The weights that training starts from: those of a saved model, or of the official PyTorch code."""

from pathlib import Path

import jax.numpy as jnp
from flax import nnx

from repmlp_jax.fusing.fuse import dotted
from repmlp_jax.interop.torch import from_torch, head_places
from repmlp_jax.interop.torch_file import load_torch_file
from repmlp_jax.models.backbone import with_backbone_of
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.storage.models import load_model


def with_weights_of(path: str | Path, model: nnx.Module, *, head: str = "load") -> nnx.Module:
    """The model with the weights and statistics that are stored there; a PSPNet takes those of a classifier's stages.

    Args:
        path: a folder that `save_model` wrote, or a file of official PyTorch weights.
        model: of the same architecture; with `head="skip"` it may have another number of classes.
        head: "skip" leaves the classifier as the model has it.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there does not fit the model.
    """
    if not Path(path).is_dir():
        return from_torch(model, load_torch_file(path), head=head)
    saved = load_model(path)
    if isinstance(model, PSPNet) and isinstance(saved, RepMLPResNet):
        return with_backbone_of(model, saved)
    graphdef, state, *rest = nnx.split(model, weights, ...)
    stored = dict(nnx.to_flat_state(nnx.state(saved, weights)))
    wanted = dict(nnx.to_flat_state(state))
    skipped = head_places(model) if head == "skip" else set()
    problems = [f"missing: {dotted(place)}" for place in wanted.keys() - stored.keys() - skipped]
    problems += [f"not used by the model: {dotted(place)}" for place in stored.keys() - wanted.keys() - skipped]
    problems += [
        f"{dotted(place)} is {stored[place].dtype}{stored[place].shape}, in the model {here.dtype}{here.shape}"
        for place, here in wanted.items()
        if place in stored
        and place not in skipped
        and (stored[place].shape, stored[place].dtype) != (here.shape, here.dtype)
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}:\n  " + "\n  ".join(sorted(problems)))
    new = {
        place: here if place in skipped else here.replace(jnp.asarray(stored[place].get_value()))
        for place, here in wanted.items()
    }
    return nnx.merge(graphdef, nnx.from_flat_state(list(new.items())), *rest)
