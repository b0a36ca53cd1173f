"""Building a published model, with weights from a file."""

import logging
from pathlib import Path

from flax import nnx

from repmlp_jax.fusing.arguments import checked
from repmlp_jax.interop.initial_weights import with_weights_of
from repmlp_jax.models import registry
from repmlp_jax.models.state import MisfitError, head_places

logger = logging.getLogger("repmlp_jax")


@checked
def create_model(
    name: str, *, pretrained: str | Path | None = None, features_only: bool = False, rngs: nnx.Rngs, **overrides
) -> nnx.Module:
    """Builds a published model, or one that `register_model` has named.

    Args:
        name: one of `list_models()`.
        pretrained: a folder or file that `save_model` wrote, `hf://OWNER/NAME`, or a file of official PyTorch weights;
            None: initial weights. If only the classifier does not fit, as it has another number of classes, it keeps
            its initial weights, and a warning of the log says so. The mode is that of a new model: call `eval()` for
            inference.
        features_only: return the map of every stage in place of logits: a list, which the model's `feature_info`
            describes. For RepMLPNet and RepMLPResNet.
        rngs: source of the initial weights.
        overrides: arguments of the model's class, which override those of the name. With `num_classes=0` a classifier
            returns the features before its last layer.

    Raises:
        FileNotFoundError: if there is nothing at `pretrained`.
        TypeError: for `pretrained=True`, as the library has no weights of its own.
        ValueError: if there is no such model; the message names the nearest. If `features_only` is not for its class,
            or weights do not fit the model.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import create_model, save_model
        >>> small = dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))
        >>> model = create_model("pure_mlp", **small, rngs=nnx.Rngs(0))
        >>> model.input_shape
        (8, 8, 3)
        >>> save_model("small", model)
        >>> small |= dict(num_classes=0)
        >>> features = create_model("pure_mlp", pretrained="small", **small, rngs=nnx.Rngs(0))
    """
    if isinstance(pretrained, bool):
        raise TypeError(
            f"pretrained={pretrained} must be a path, hf://OWNER/NAME or None: the library has no weights of its own"
        )
    model = registry.create_model(name, features_only=features_only, rngs=rngs, **overrides)
    if pretrained is None:
        return model
    if features_only or overrides.get("num_classes") == 0:
        return with_weights_of(pretrained, model, head="skip")
    try:
        return with_weights_of(pretrained, model)
    except MisfitError as misfit:
        if len(misfit.problems) > len(head_places(model)):
            raise
        loaded = with_weights_of(pretrained, model, head="skip")
        logger.warning("the classifier keeps its initial weights: %s", misfit.problems[0].partition(";")[0])
        return loaded
