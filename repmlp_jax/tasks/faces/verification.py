"""Verification: whether two images show the same person, for people outside the training set."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num
from sklearn.metrics import roc_curve

FALSE_ACCEPT_RATES = (1e-1, 1e-2, 1e-3)


class Roc(NamedTuple):
    """Receiver operating characteristic, from a threshold that accepts no pair to the lowest threshold.

    Attributes:
        far: false accept rate, the share of pairs of different people that are accepted; never falls.
        tar: true accept rate, the share of pairs of the same person that are accepted; never falls.
        thresholds: a pair is accepted if its similarity is at least this; falls, from infinity.
    """

    far: Float[np.ndarray, " T"]
    tar: Float[np.ndarray, " T"]
    thresholds: Float[np.ndarray, " T"]


def cosine_similarities(embeddings: Num[np.ndarray, "N features"]) -> Float[np.ndarray, "N N"]:
    """The cosine of the angle between every two embeddings, in float64; embeddings may have any length.

    Raises:
        ValueError: if the embeddings are not a matrix, or one of them is not finite or has length 0.
    """
    embeddings = np.asarray(embeddings, np.float64)
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings must be (images, features), not of shape {embeddings.shape}")
    broken = np.flatnonzero(~np.isfinite(embeddings).all(1))
    if broken.size:
        raise ValueError(f"{broken.size} of {len(embeddings)} embeddings are not finite, the first is {broken[0]}")
    # Divide by the largest value first, so that no square overflows or vanishes.
    largest = np.abs(embeddings).max(1, keepdims=True, initial=0.0)
    zero = np.flatnonzero(largest == 0)
    if zero.size:
        raise ValueError(
            f"{zero.size} of {len(embeddings)} embeddings are zero and have no angle, the first is {zero[0]}"
        )
    scaled = embeddings / largest
    directions = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    return directions @ directions.T


def roc(similarities: Num[np.ndarray, " P"], same: Bool[np.ndarray, " P"]) -> Roc:
    """The rates at every threshold that changes them; pairs of equal similarity are accepted together.

    Args:
        similarities: of each pair; larger for more similar images.
        same: whether the pair shows the same person.

    Raises:
        ValueError: if shapes differ, a similarity is not finite, or there are no pairs of either kind.
    """
    similarities, same = np.asarray(similarities), np.asarray(same)
    if similarities.ndim != 1 or similarities.shape != same.shape or same.dtype != bool:
        raise ValueError(
            f"roc takes similarities (pairs,) and same (pairs,), truth values, not shapes {similarities.shape} and "
            f"{same.shape} of {same.dtype}"
        )
    if not np.isfinite(similarities).all():
        raise ValueError(f"{np.sum(~np.isfinite(similarities))} of {similarities.size} similarities are not finite")
    if same.all() or not same.any():
        raise ValueError(f"roc needs pairs of both kinds: {same.sum()} of {same.size} pairs are of the same person")
    return Roc(*roc_curve(same, similarities, drop_intermediate=False))


def tar_at_far(curve: Roc, target: float) -> float:
    """The largest true accept rate whose false accept rate is at most the target, without interpolation.

    For a target below 1 / (pairs of different people), it is the rate at which none of these pairs is accepted.

    Raises:
        ValueError: if the target is not between 0 and 1.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"a false accept rate is a share from 0 to 1, not {target}")
    return float(curve.tar[np.searchsorted(curve.far, target, side="right") - 1])


def verification_report(embeddings: Num[np.ndarray, "N features"], labels: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Scores embeddings by the cosines of all pairs of images, each pair once.

    Scores are shares of 1 unless stated otherwise. Memory grows with the square of the number of images.

    Args:
        embeddings: one for each image, of any length.
        labels: the person on each image.

    Returns:
        tar_at_far_1e-1, tar_at_far_1e-2, tar_at_far_1e-3: see `tar_at_far`.
        auc: area under the ROC curve: the probability that a pair of the same person is more similar than a pair of
            different people, where a tie counts half.
        balanced_accuracy: mean of the true accept rate and the share of different pairs that are rejected, at the
            best threshold for these pairs.
        threshold: that threshold, a cosine; the highest if there are several.
        rank_1: share of the images whose nearest other image shows the same person; a tie with another person does
            not count. Images that are the only one of their person are left out.
        images, people: their numbers.
        images_left_out: number of images that are the only one of their person.
        same_pairs, different_pairs: number of pairs of the same and of different people.

    Raises:
        ValueError: if there is not one label for each image, there are fewer than two people, or no person has two
            images; as `cosine_similarities`.
    """
    embeddings, labels = np.asarray(embeddings), np.asarray(labels)
    if labels.ndim != 1 or len(labels) != len(embeddings) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels must be one integer an image: {labels.dtype} of shape {labels.shape} for embeddings of shape "
            f"{embeddings.shape}"
        )
    people, images_of = np.unique(labels, return_counts=True)
    if len(people) < 2 or images_of.max() < 2:
        raise ValueError(
            f"verification needs two people, and two images of one of them: there are {len(labels)} images of "
            f"{len(people)} people"
        )
    similarities = cosine_similarities(embeddings)
    is_same = labels[:, None] == labels
    one_of_each_pair = np.triu_indices(len(labels), k=1)
    same = is_same[one_of_each_pair]
    curve = roc(similarities[one_of_each_pair], same)
    accuracies = (curve.tar + 1 - curve.far)[1:] / 2  # The first threshold is infinite.
    best = int(np.argmax(accuracies))
    return {
        **{f"tar_at_far_{_power_of_ten(target)}": tar_at_far(curve, target) for target in FALSE_ACCEPT_RATES},
        "auc": float(np.trapezoid(curve.tar, curve.far)),
        "balanced_accuracy": float(accuracies[best]),
        "threshold": float(curve.thresholds[1 + best]),
        "rank_1": _rank_1(similarities, is_same),
        "images": len(labels),
        "people": len(people),
        "images_left_out": int(np.sum(images_of == 1)),
        "same_pairs": int(same.sum()),
        "different_pairs": int(same.size - same.sum()),
    }


def _rank_1(similarities, is_same):
    others = np.where(np.eye(len(similarities), dtype=bool), -np.inf, similarities)
    nearest_same = np.where(is_same, others, -np.inf).max(1)
    nearest_different = np.where(is_same, -np.inf, others).max(1)
    has_another = np.isfinite(nearest_same)
    return float((nearest_same > nearest_different)[has_another].mean())


def _power_of_ten(share):
    return f"1e{round(np.log10(share))}"
