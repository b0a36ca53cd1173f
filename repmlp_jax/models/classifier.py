"""The linear classifier at the end of a model, or none."""

from flax import nnx
from jaxtyping import Array, Float

from repmlp_jax.blocks.initializers import classifier_init


class NoClassifier(nnx.Module):
    """The classifier of a model without classes: it returns the features."""

    def __call__(self, x: Float[Array, "N features"]) -> Float[Array, "N features"]:
        """Returns `x`."""
        return x


def classifier(features: int, num_classes: int, **options) -> nnx.Linear | NoClassifier:
    """A linear classifier, or `NoClassifier` for no classes.

    Args:
        features: input features.
        num_classes: number of classes, or 0.
        options: further arguments of `nnx.Linear`.
    """
    if not num_classes:
        return NoClassifier()
    return nnx.Linear(features, num_classes, kernel_init=classifier_init, **options)
