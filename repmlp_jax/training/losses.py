"""What training minimises."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "N classes"], labels: Int[Array, " N"], label_smoothing: float = 0.0
) -> Float[Array, " N"]:
    """Softmax cross-entropy of each example in nats, computed in float32 or wider."""
    logits = logits.astype(jnp.float64 if logits.dtype == jnp.float64 else jnp.float32)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
