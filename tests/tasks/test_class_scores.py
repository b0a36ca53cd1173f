"""The scores of classifiers, and the tables of what they confuse."""

import csv

import jax
import numpy as np
import pytest

from repmlp_jax.tasks.class_scores import batch_metrics, extra_scores, mean_metrics, predicted_classes
from repmlp_jax.tasks.confusion import MOST_CLASSES, confusion_matrix, write_confusion

EXTRA = ("top_5_accuracy", "calibration_error")


def examples(classes=7, count=60):
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, classes)).astype(np.float32) * 2
    logits[:10] = 0  # equal ones, of which the first five count
    label = random.integers(0, classes, count).astype(np.uint8)
    return logits, dict(label=label, mask=np.arange(count) < count - 5)


def in_batches(logits, batch, size=20):
    for start in range(0, len(logits), size):
        part = slice(start, start + size)
        yield logits[part], {name: array[part] for name, array in batch.items()}


def scores_of(logits, batch, extra):
    found = [jax.jit(batch_metrics, static_argnums=2)(*one, extra) for one in in_batches(logits, batch)]
    return mean_metrics(jax.tree.map(lambda *parts: np.stack(parts), *found), extra)


def test_top_5_and_calibration_are_those_of_a_slow_computation():
    logits, batch = examples()
    scores = scores_of(logits, batch, EXTRA)
    logits, labels = (array[batch["mask"]] for array in (logits.astype(float), batch["label"]))
    best = np.argsort(-logits, 1, kind="stable")[:, :5]
    assert scores["top_5_accuracy"] == np.mean([label in five for label, five in zip(labels, best, strict=True)])
    confidence = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).max(1)
    right, error = logits.argmax(1) == labels, 0
    for low in np.arange(15) / 15:
        inside = (low < confidence) & (confidence <= low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert scores["calibration_error"] == pytest.approx(error, abs=1e-6)
    assert scores["accuracy"] == right.mean()


def test_without_them_nothing_is_computed_in_another_way():
    logits, batch = examples()
    plain, more = (scores_of(logits, batch, extra) for extra in ((), EXTRA))
    assert plain == {name: more[name] for name in ("loss", "accuracy")}


@pytest.mark.parametrize(
    ("classes", "calibration", "names"),
    [(99, False, ()), (100, False, EXTRA[:1]), (10, True, EXTRA[1:]), (1000, True, EXTRA)],
)
def test_which_scores_there_are(classes, calibration, names):
    assert extra_scores(classes, calibration) == names


def test_tables_of_what_is_confused(tmp_path):
    logits, batch = examples()
    found = jax.jit(predicted_classes)(logits, batch)
    labels, predicted = (np.asarray(found[name])[batch["mask"]] for name in ("label", "predicted"))
    labels = np.where(labels == 3, 4, labels)  # a class without images
    matrix = confusion_matrix(labels, predicted, 7)
    for true, guess in np.ndindex(7, 7):
        assert matrix[true, guess] == ((labels == true) & (predicted == guess)).sum()
    names = ["cat, black", *"bcdefg"]
    write_confusion(tmp_path, labels, predicted, names)
    head, *rows = csv.reader((tmp_path / "confusion.csv").open())
    assert head == ["true class", *names]
    assert [row[0] for row in rows] == names
    assert [list(map(int, row[1:])) for row in rows] == matrix.tolist()
    rows = list(csv.DictReader((tmp_path / "classes.csv").open()))
    assert [row["class"] for row in rows] == names
    assert rows[3] == {"class": "d", "images": "0", "correct": "0", "accuracy": ""}
    assert float(rows[0]["accuracy"]) == pytest.approx(matrix[0, 0] / matrix[0].sum(), rel=1e-5)
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_very_many_classes_have_no_matrix(tmp_path):
    names = list(map(str, range(MOST_CLASSES + 1)))
    write_confusion(tmp_path, np.array([7, 7, 2000]), np.array([7, 3, 2000]), names)
    assert [path.name for path in tmp_path.iterdir()] == ["classes.csv"]
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert (rows[8], rows[-1], len(rows)) == ("7,2,1,0.5", "2000,1,1,1", MOST_CLASSES + 2)
