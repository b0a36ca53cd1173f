"""The weights that a model starts from: a saved model, or official PyTorch weights."""

from pathlib import Path

from flax import nnx

from repmlp_jax.fusing.fuse import fusable_modules
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.interop.torch import from_torch
from repmlp_jax.interop.torch_file import load_torch_file
from repmlp_jax.models.backbone import with_backbone_of
from repmlp_jax.models.partitions import check_same_partitions
from repmlp_jax.models.pspnet import PSPNet
from repmlp_jax.models.resnet import RepMLPResNet
from repmlp_jax.models.state import MisfitError, arrays_of, head_places, load_state
from repmlp_jax.storage.models import is_saved_model, load_model, model_path


def with_weights_of(path: str | Path, model: nnx.Module, *, head: str = "load") -> nnx.Module:
    """Loads weights and statistics into a model; a PSPNet also takes the stages of a classifier.

    Args:
        path: a folder or file that `save_model` wrote, `hf://OWNER/NAME`, or a file of official PyTorch weights.
        model: of the same architecture; with `head="skip"` it may have another number of classes.
        head: "skip" leaves the classifier as the model has it, which may also have none.

    Returns:
        A new model of the given class.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if the stored weights do not fit the model, or one of them is NaN or infinite.
    """
    path = model_path(path)
    if not is_saved_model(path):
        return from_torch(model, load_torch_file(path), head=head)
    saved = load_model(path)
    if isinstance(model, PSPNet) and isinstance(saved, RepMLPResNet):
        return with_backbone_of(model, saved)
    arrays, kept = arrays_of(saved), set()
    if head == "skip":
        kept = head_places(model)
        left_out = set(map(dotted, head_places(saved))) if hasattr(model, "head") else _below("head", arrays)
        arrays = {name: array for name, array in arrays.items() if name not in left_out}
    try:
        loaded = load_state(model, arrays, str(path), kept=kept)
        check_same_partitions(model, saved, str(path))
        return loaded
    except MisfitError as error:
        fused, advice = ("", "") if fusable_modules(saved) else ("fused ", " load_model loads it as it is.")
        error.guess = f"{path} holds a {fused}{type(saved).__name__}.{advice}"
        raise


def _below(name, arrays):
    return {path for path in arrays if path.partition(".")[0] == name}
