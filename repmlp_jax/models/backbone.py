"""Initialisation of a model with the stages of a classifier."""

from flax import nnx

from repmlp_jax.fusing.fuse import dotted
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.resnet import RepMLPResNet, ResNetStages
from repmlp_jax.models.state import arrays_of, load_state

BACKBONE = ("stem", "stages")


def with_backbone_of(model: ResNetStages, classifier: RepMLPResNet) -> nnx.Module:
    """Loads the weights and statistics of a classifier's stem and stages into a model.

    FC1 and FC2 of a Global Perceptron depend on the number of partitions; the model keeps its own if this differs.

    Args:
        model: the model to train.
        classifier: a trained classifier with the same blocks, partitions and groups.

    Returns:
        A new model.

    Raises:
        ValueError: as `load_state`; FC1 and FC2 may differ in shape.
    """
    stored = {name: array for name, array in arrays_of(classifier).items() if name.startswith(BACKBONE)}
    other = {name for name, array in arrays_of(model).items() if name in stored and stored[name].shape != array.shape}
    kept = {
        place
        for place, _ in nnx.to_flat_state(nnx.state(model, weights))
        if place[0] not in BACKBONE or ({"fc1", "fc2"} & set(place) and dotted(place) in other)
    }
    return load_state(model, stored, "the classifier", kept=kept)
