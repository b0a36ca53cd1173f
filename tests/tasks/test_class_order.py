"""Classes are matched by name, and what cannot be matched is said."""

import numpy as np
import pytest

from repmlp_jax.tasks.class_order import class_order

NAMES = ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("names", "of_dataset", "expected"),
    [
        (NAMES, NAMES, [0, 1, 2]),
        (list(NAMES), NAMES, [0, 1, 2]),
        (NAMES, ("cat", "ant", "bee"), [2, 0, 1]),
        ((), NAMES, [0, 1, 2]),
        (NAMES, (), [0, 1, 2]),
        ((), (), [0, 1, 2]),
        (("crane", "ant", "crane"), ("crane", "ant", "crane"), [0, 1, 2]),  # ImageNet has two of them
    ],
)
def test_each_class_of_the_dataset_is_found_in_the_model(names, of_dataset, expected):
    order = class_order(names, 3, of_dataset, 3)
    assert order.dtype == np.int32
    assert order.tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((NAMES, 3, ("ant", "bee", "dog"), 3), "names differ: only m has 'cat'; only d has 'dog'"),
        (
            (NAMES, 3, ("ant", "bee"), 2),
            "3 classes, d 2, and their names differ: only m has 'cat'; only d has none",
        ),
        ((tuple("abcdefg"), 7, tuple("tuvwxyz"), 7), "only m has 'a', 'b', 'c', 'd', 'e' and 2 more; only d has 't'"),
        (((), 3, NAMES[:2], 2), "m has 3 classes, d 2; they are compared by number, since m has no class names"),
        ((NAMES, 3, (), 2), "m has 3 classes, d 2; they are compared by number, since d has no class names"),
        (((), 3, (), 2), "m has 3 classes, d 2; .*, since neither has class names"),
        ((NAMES, 5, NAMES, 3), "m has 3 class names for 5 classes"),
        ((("a", "b", "a"), 3, ("b", "a", "a"), 3), "another order, and 'a' occurs more than once: which is which"),
        ((("a", "b", "a"), 3, ("a", "b"), 2), "m has 3 classes, d 2, .* 'a' occurs more than once"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        class_order(*arguments, model="m", dataset="d")
