"""Initialisation of a model with the stages of a classifier."""

from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.models.partitions import check_same_partitions, partitions_of
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.resnet import RepMLPResNet, ResNetStages
from repmlp_jax.models.state import arrays_of, load_state

BACKBONE = ("stem", "stages")


def with_backbone_of(model: ResNetStages, classifier: RepMLPResNet) -> nnx.Module:
    """Loads the weights and statistics of a classifier's stem and stages into a model.

    FC1 and FC2 of a Global Perceptron depend on the number of partitions down and across; the model keeps its own if
    these differ.

    Args:
        model: the model to train.
        classifier: a trained classifier with the same blocks, partitions and groups.

    Returns:
        A new model.

    Raises:
        ValueError: as `load_state`, where FC1 and FC2 may differ in shape; if the partitions have other sizes.
    """
    stored = {name: array for name, array in arrays_of(classifier).items() if name.startswith(BACKBONE)}
    resized = {name for name, array in arrays_of(model).items() if name in stored and stored[name].shape != array.shape}
    here, there = partitions_of(model), partitions_of(classifier)
    recounted = {block for block in here.keys() & there.keys() if here[block].counts != there[block].counts}

    def stays(place):
        block, is_fc = dotted(place[:-3]), bool({"fc1", "fc2"} & set(place))
        return place[0] not in BACKBONE or (is_fc and (dotted(place) in resized or block in recounted))

    kept = {place for place, _ in nnx.to_flat_state(nnx.state(model, weights)) if stays(place)}
    loaded = load_state(model, stored, "the classifier", kept=kept)
    check_same_partitions(model, classifier, "the classifier", compared=("size",))
    return loaded
