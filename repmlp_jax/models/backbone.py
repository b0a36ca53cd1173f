"""A net that starts from the stages of a classifier."""

from flax import nnx

from repmlp_jax.fusing.fuse import dotted
from repmlp_jax.models.randomness import weights
from repmlp_jax.models.resnet import RepMLPResNet, ResNetStages

BACKBONE = ("stem", "stages")


def with_backbone_of(model: ResNetStages, classifier: RepMLPResNet) -> ResNetStages:
    """The model with the weights and statistics of a classifier's stem and stages.

    FC1 and FC2 of the Global Perceptrons, whose size is that of the image in partitions, come along where that is the
    same, and stay those of the model where it is not.

    Args:
        model: the net to train.
        classifier: of the same blocks, partitions and groups, trained.

    Raises:
        ValueError: if one has arrays that the other lacks, or other than of FC1 and FC2 differ in shape or dtype.
    """
    graphdef, state, *rest = nnx.split(model, weights, ...)
    here = dict(nnx.to_flat_state(state))
    there = {place: array for place, array in nnx.to_flat_state(nnx.state(classifier, weights)) if place[0] in BACKBONE}
    wanted = {place for place in here if place[0] in BACKBONE}
    problems = [f"only one of them has {dotted(place)}" for place in wanted ^ there.keys()]
    differing = {
        place
        for place in wanted & there.keys()
        if (here[place].shape, here[place].dtype) != (there[place].shape, there[place].dtype)
    }
    problems += [
        f"{dotted(place)} is {there[place].dtype}{there[place].shape}, in the model "
        f"{here[place].dtype}{here[place].shape}"
        for place in differing
        if not {"fc1", "fc2"} & set(place)
    ]
    if problems:
        raise ValueError("the classifier's stages do not fit the model:\n  " + "\n  ".join(sorted(problems)))
    new = [
        (place, array.replace(there[place].get_value()) if place in wanted - differing else array)
        for place, array in here.items()
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(new), *rest)
