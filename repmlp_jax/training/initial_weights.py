"""The weights that training starts from: a saved model, or official PyTorch weights."""

from pathlib import Path

from flax import nnx

from repmlp_jax.fusing.fuse import fusable_modules
from repmlp_jax.interop.torch import from_torch
from repmlp_jax.interop.torch_file import load_torch_file
from repmlp_jax.local_path import local_path
from repmlp_jax.models.backbone import with_backbone_of
from repmlp_jax.models.partitions import check_same_partitions
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.models.state import MisfitError, arrays_of, head_places, load_state
from repmlp_jax.storage.models import is_saved_model, load_model


def with_weights_of(path: str | Path, model: nnx.Module, *, head: str = "load") -> nnx.Module:
    """Loads weights and statistics into a model; a PSPNet also takes the stages of a classifier.

    Args:
        path: a folder or file that `save_model` wrote, or a file of official PyTorch weights.
        model: of the same architecture; with `head="skip"` it may have another number of classes.
        head: "skip" leaves the classifier as the model has it.

    Returns:
        A new model of the given class.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if the stored weights do not fit the model, or one of them is NaN or infinite.
    """
    path = local_path(path)
    if not is_saved_model(path):
        return from_torch(model, load_torch_file(path), head=head)
    saved = load_model(path)
    if isinstance(model, PSPNet) and isinstance(saved, RepMLPResNet):
        return with_backbone_of(model, saved)
    kept = head_places(model) if head == "skip" else ()
    try:
        loaded = load_state(model, arrays_of(saved), str(path), kept=kept)
        check_same_partitions(model, saved, str(path))
        return loaded
    except MisfitError as error:
        fused = "" if fusable_modules(saved) else "fused "
        error.guess = f"{path} holds a {fused}{type(saved).__name__}."
        raise
