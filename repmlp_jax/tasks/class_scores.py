"""The scores of classifiers: sums over batches on the devices, and what follows from them on the host."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repmlp_jax.training.losses import cross_entropy

CLASSES_FOR_TOP_5 = 100
BINS = 15  # of the confidence, all of the same width, as in arXiv 1706.04599


def extra_scores(classes: int, calibration: bool = False) -> tuple[str, ...]:
    """Names of the scores besides loss and accuracy; `calibration` asks for the expected calibration error."""
    return ("top_5_accuracy",) * (classes >= CLASSES_FOR_TOP_5) + ("calibration_error",) * calibration


def batch_metrics(logits, batch, extra: tuple[str, ...] = ()) -> tuple[jax.Array, ...]:
    """The sum of the losses, the number of correct images, and the number of images; then the sums for `extra`."""
    targets = jax.nn.one_hot(batch["label"], logits.shape[-1], dtype=jnp.float32)
    losses = jnp.where(batch["mask"], cross_entropy(logits, targets), 0.0)
    right = are_right(logits, batch["label"]) & batch["mask"]
    sums = losses.sum(), right.sum(dtype=jnp.int32), batch["mask"].sum(dtype=jnp.int32)
    return sums + tuple(SUMS[name](logits, batch, right) for name in extra)


def mean_metrics(measured, extra: tuple[str, ...] = ()) -> dict[str, float]:
    """The mean loss in nats, the accuracy, a share of 1, and the scores `extra`, over the metrics of all batches."""
    losses, right, counts, *others = (np.sum(values, axis=0, dtype=np.float64) for values in measured)
    scores = dict(loss=losses, accuracy=right) | dict(zip(extra, (abs(sums).sum() for sums in others), strict=True))
    return {name: float(sums / counts) for name, sums in scores.items()}


def predicted_classes(logits, batch) -> dict[str, jax.Array]:
    """For each image of a batch its true and predicted class, and whether it counts."""
    predicted = jax.lax.argmax(logits, 1, jnp.int32)
    return dict(label=batch["label"].astype(jnp.int32), predicted=predicted, mask=batch["mask"])


def are_right(logits, labels):
    """Whether the largest logit is that of the label; the first of equals counts."""
    return jax.lax.argmax(logits, 1, jnp.int32) == labels.astype(jnp.int32)


def _in_top_5(logits, batch, _):
    _, classes = jax.lax.top_k(logits, 5)
    found = (classes.astype(jnp.int32) == batch["label"].astype(jnp.int32)[:, None]).any(1)
    return (found & batch["mask"]).sum(dtype=jnp.int32)


def _overconfidence(logits, batch, right):
    """For each bin of the confidence the sum of confidence minus correctness; its size is the error of the bin."""
    confidence = jax.nn.softmax(logits.astype(jnp.float32)).max(1)
    places = jnp.clip(jnp.ceil(confidence * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
    excess = jnp.where(batch["mask"], confidence - right.astype(jnp.float32), 0.0)
    return jnp.where(places[:, None] == jnp.arange(BINS, dtype=jnp.int32)[None], excess[:, None], 0.0).sum(0)


SUMS: dict[str, Any] = {"top_5_accuracy": _in_top_5, "calibration_error": _overconfidence}
