"""Verification by hand, against scikit-learn, and what has to hold of any embeddings."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as expected_roc_curve
from tolerance import ROUNDING_F64, assert_close

from repmlp_jax.plots import roc_curve
from repmlp_jax.tasks.faces.verification import Roc, cosine_similarities, roc, tar_at_far, verification_report


@st.composite
def pairs(draw):
    """Similarities, often equal ones, of pairs of both kinds."""
    similarities = draw(hnp.arrays(np.float64, st.integers(2, 40), elements=st.integers(-4, 4).map(lambda n: n / 4)))
    same = draw(hnp.arrays(bool, similarities.shape))
    assume(same.any() and not same.all())
    return similarities, same


@st.composite
def faces(draw):
    """Embeddings and labels of two or more people, one of whom has two images."""
    labels = draw(hnp.arrays(np.int32, st.integers(3, 12), elements=st.integers(0, 3)))
    counts = np.unique(labels, return_counts=True)[1]
    assume(len(counts) > 1 and counts.max() > 1)
    embeddings = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(len(labels), 3))
    return embeddings, labels


@given(pairs())
def test_the_curve_has_the_rates_of_every_similarity_as_threshold(case):
    similarities, same = case
    curve = roc(similarities, same)
    assert curve.thresholds.tolist() == [np.inf, *sorted(set(similarities.tolist()), reverse=True)]
    accepted = similarities >= curve.thresholds[:, None]
    np.testing.assert_array_equal(curve.far, accepted[:, ~same].mean(1))
    np.testing.assert_array_equal(curve.tar, accepted[:, same].mean(1))


@given(pairs(), st.floats(0, 1))
def test_a_true_accept_rate_is_the_largest_that_a_threshold_gives(case, target):
    similarities, same = case
    rates = [0.0]  # of a threshold that accepts nothing
    for threshold in similarities:
        accepted = similarities >= threshold
        if accepted[~same].mean() <= target:
            rates.append(accepted[same].mean())
    assert tar_at_far(roc(similarities, same), target) == max(rates)


def test_rates_by_hand():
    # Pairs in falling order: same, then a tie of a same and a different one, different, same.
    curve = roc(np.array([0.1, 0.9, 0.5, 0.5, 0.3]), np.array([True, True, True, False, False]))
    assert curve.far.tolist() == [0, 0, 1 / 2, 1, 1]
    assert curve.tar.tolist() == [0, 1 / 3, 2 / 3, 2 / 3, 1]
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.5, 0.3, 0.1]
    assert [tar_at_far(curve, far) for far in (0, 0.49, 0.5, 0.99, 1)] == [1 / 3, 1 / 3, 2 / 3, 2 / 3, 1]


def test_a_report_by_hand():
    # Directions in degrees: person 4 at 0 and 50, person 7 at 12 and 30, person 9 alone at 90.
    angles = np.radians([0, 50, 12, 30, 90])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1], [2], [3], [4], [5]])
    report = verification_report(embeddings, np.array([4, 4, 7, 7, 9]))
    # The pairs' angles are 18 and 50 of the same person, 12, 20, 30, 38, 40, 60, 78 and 90 of different ones.
    assert report["auc"] == pytest.approx((7 + 3) / (2 * 8))
    assert report["tar_at_far_1e-1"] == 0  # the nearest pair is a different one, 1 of 8
    # Up to 18°, 1 of 2 and 1 of 8 are accepted; up to 50° it is as good, with 2 of 2 and 5 of 8.
    assert report["balanced_accuracy"] == (1 / 2 + 7 / 8) / 2
    assert report["threshold"] == pytest.approx(np.cos(np.radians(18)))
    # Nearest to 0 is 12, to 50 it is 30, to 12 it is 0; to 30 it is 12, of the same person.
    assert report["rank_1"] == 1 / 4
    counts = ("images", "people", "images_left_out", "same_pairs", "different_pairs")
    assert [report[name] for name in counts] == [5, 3, 1, 2, 8]
    assert json.loads(json.dumps(report)) == report


def test_embeddings_that_tell_all_people_apart_are_perfect():
    report = verification_report(np.repeat(np.eye(3), 2, axis=0), np.array([5, 5, 1, 1, 2, 2]))
    perfect = {name for name, value in report.items() if value == 1}
    assert perfect == {
        *("tar_at_far_1e-1", "tar_at_far_1e-2", "tar_at_far_1e-3", "auc", "balanced_accuracy", "rank_1"),
        "threshold",
    }


def test_embeddings_that_are_all_alike_know_nothing():
    report = verification_report(np.ones((4, 2), np.float32), np.array([0, 0, 1, 1]))
    assert report["auc"] == report["balanced_accuracy"] == 0.5
    assert report["rank_1"] == report["tar_at_far_1e-1"] == 0
    assert np.isfinite(report["threshold"])


@settings(deadline=None)
@given(faces())
def test_a_report_is_what_all_pairs_once_give(case):
    embeddings, labels = case
    report = verification_report(embeddings, labels)
    places = [(one, other) for one in range(len(labels)) for other in range(one)]
    similarities = [
        embeddings[one] @ embeddings[other] / np.linalg.norm(embeddings[one]) / np.linalg.norm(embeddings[other])
        for one, other in places
    ]
    same = [labels[one] == labels[other] for one, other in places]
    assert report["same_pairs"] == sum(same)
    assert report["same_pairs"] + report["different_pairs"] == len(places)
    assert report["auc"] == pytest.approx(roc_auc_score(same, similarities), rel=ROUNDING_F64)
    far, tar, _ = expected_roc_curve(same, similarities)
    assert report["balanced_accuracy"] == pytest.approx(max(tar + 1 - far) / 2, rel=ROUNDING_F64)
    right = []
    for image, label in enumerate(labels):
        others = [place for place in range(len(labels)) if place != image]
        if label in labels[others]:
            nearest = max(others, key=lambda other: cosine_similarities(embeddings[[image, other]])[0, 1])
            right.append(labels[nearest] == label)
    assert report["rank_1"] == pytest.approx(np.mean(right))


@settings(deadline=None)
@given(faces(), st.integers(0, 99))
def test_neither_order_nor_lengths_nor_the_people_s_numbers_matter(case, seed):
    embeddings, labels = case
    report = verification_report(embeddings, labels)
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    changed = embeddings[order] * 2.0 ** random.integers(-600, 400, (len(labels), 1))
    again = verification_report(changed, 7 - 2 * labels[order])
    for name, value in report.items():
        assert again[name] == pytest.approx(value, rel=ROUNDING_F64)


@pytest.mark.usefixtures("unchecked_types")
def test_what_cannot_be_scored_is_named():
    embeddings, labels = np.eye(4), np.array([0, 0, 1, 1])
    for wrong, message in [
        ((embeddings, labels[:3]), r"int64 of shape \(3,\) for embeddings of shape \(4, 4\)"),
        ((embeddings, labels / 2), r"float64 of shape \(4,\)"),
        ((embeddings, np.zeros(4, int)), "there are 4 images of 1 people"),
        ((embeddings, np.arange(4)), "there are 4 images of 4 people"),
        ((embeddings[0], labels), r"embeddings must be \(images, features\), not of shape \(4,\)"),
        ((np.where(np.eye(4) > 0, [1, 1, np.nan, np.inf], 0), labels), "2 of 4 embeddings are not finite.*is 2"),
        ((embeddings * [1, 0, 1, 1], labels), "1 of 4 embeddings are zero and have no angle, the first is 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            verification_report(*wrong)
    with pytest.raises(ValueError, match="2 of 2 pairs are of the same person"):
        roc(np.ones(2), np.ones(2, bool))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(2,\) of bool"):
        roc(np.ones(3), np.ones(2, bool))
    with pytest.raises(ValueError, match=r"\(2,\) of int64"):
        roc(np.ones(2), np.array([0, 1]))
    with pytest.raises(ValueError, match="1 of 2 similarities are not finite"):
        roc(np.array([0, np.nan]), np.array([True, False]))
    with pytest.raises(ValueError, match="a share from 0 to 1, not 10"):
        tar_at_far(Roc(*np.array([[0.0, 1.0]] * 3)), 10)


def test_the_picture_shows_the_true_accept_rate_at_every_false_one():
    curve = roc(np.array([0.1, 0.9, 0.5, 0.5, 0.3]), np.array([True, True, True, False, False]))
    perfect = roc(np.array([1.0, 0.0]), np.array([True, False]))
    axes = roc_curve({"net": curve[:2], "perfect": (perfect.far, perfect.tar)}).axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["chance", "net", "perfect"]
    assert axes.get_xscale() == "log"
    edge = axes.get_xlim()[0]
    assert 0 < edge < 0.5
    assert lines["net"].get_drawstyle() == "steps-post"
    assert_close(lines["net"].get_xydata(), [[edge, 100 / 3], [0.5, 200 / 3], [1, 100]], ROUNDING_F64)
    assert_close(lines["perfect"].get_xydata(), [[edge, 100], [1, 100]], ROUNDING_F64)
    with pytest.raises(ValueError, match="'net' has 2 false and 1 true"):
        roc_curve({"net": ([0, 1], [1])})
