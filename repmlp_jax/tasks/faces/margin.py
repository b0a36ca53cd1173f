"""Cosine classifiers and their loss, AM-Softmax (arXiv 1801.05599)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from repmlp_jax.fusing import algebra
from repmlp_jax.models.face import unit_length


def am_softmax(
    cosines: Float[Array, "N people"], labels: Int[Array, " N"], margin: float = 0.35, scale: float = 30.0
) -> Float[Array, " N"]:
    """Additive margin softmax: cross-entropy with a margin that the true class has to exceed (equation 6).

    Args:
        cosines: of each embedding with each class, from −1 to 1.
        labels: the true classes; a label that is not a class makes its loss NaN.
        margin: m, subtracted from the cosine with the true class; the paper uses 0.35.
        scale: s, the factor of the cosines; the paper uses 30.

    Returns:
        The loss of each example in nats, in float32 or wider.

    Raises:
        ValueError: if the shapes do not fit, the margin is negative, or the scale is not positive.
    """
    if cosines.ndim != 2 or labels.shape != cosines.shape[:1]:
        raise ValueError(
            f"am_softmax takes cosines (N, people) and labels (N,), not shapes {cosines.shape} and {labels.shape}"
        )
    if not (0 <= margin < math.inf and 0 < scale < math.inf):
        raise ValueError(f"am_softmax needs margin >= 0 and scale > 0, not margin={margin} and scale={scale}")
    people = cosines.shape[1]
    own = jax.nn.one_hot(labels, people, dtype=algebra.fusing_dtype(cosines.dtype))
    losses = optax.softmax_cross_entropy(scale * (algebra.widened(cosines) - margin * own), own)
    # The row of `own` is zero for a label that is not a class, so its loss would be 0.
    return jnp.where((labels >= 0) & (labels < people), losses, jnp.nan)


class CosineClassifier(nnx.Module):
    """The cosine of the angle between an embedding and one vector for each person.

    Only the directions of the vectors matter. Their lengths, initially 1 on average, set how far a step turns them.

    Args:
        features: length of the embedding.
        num_people: people in the training set.
        param_dtype: dtype of the vectors.
        rngs: source of the initial vectors.
    """

    def __init__(self, features: int, num_people: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        initialise = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
        kernel = initialise(rngs.params(), (features, num_people), algebra.fusing_dtype(param_dtype))
        self.kernel = nnx.Param(kernel.astype(param_dtype))

    def __call__(self, embeddings: Float[Array, "N features"]) -> Float[Array, "N people"]:
        """The cosines, in float32 or wider; the embeddings may have any length."""
        embeddings, people = promote_dtype((unit_length(embeddings), unit_length(self.kernel[...].T)), dtype=None)
        return jnp.matmul(embeddings, people.T)


class FaceClassifier(nnx.Module):
    """The training-time module of an embedding model: the model and a classifier over the people of the training set.

    Args:
        net: a model that returns embeddings of length `embedding_features`. Only it is saved, fused and evaluated.
        num_people: people in the training set.
        param_dtype: dtype of the vectors for them.
        rngs: source of the initial vectors.
    """

    def __init__(self, net: Any, num_people: int, *, param_dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs):
        self.net = net
        self.people = CosineClassifier(net.embedding_features, num_people, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "N H W C"]) -> Float[Array, "N people"]:
        """The cosines of a batch of images with every person."""
        return self.people(self.net(x))
