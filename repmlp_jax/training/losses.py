"""Loss functions."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float


def cross_entropy(logits: Float[Array, "*N classes"], targets: Float[Array, "*N classes"]) -> Float[Array, "*N"]:
    """Softmax cross-entropy of each example in nats, computed in float32 or wider.

    Args:
        logits: one for each class.
        targets: a distribution over the classes for each example: one-hot, smoothed or mixed.
    """
    wide = jnp.float64 if logits.dtype == jnp.float64 else jnp.float32
    return optax.softmax_cross_entropy(logits.astype(wide), targets.astype(wide))
