"""Scikit-learn's handwritten digits: 1,797 images in its wheel, which need no download."""

import numpy as np

CLASS_NAMES = tuple(map(str, range(10)))
# Of the training images, which are scaled to [0, 1].
MEAN = (0.3054,)
STD = (0.3759,)
TRAIN_EXAMPLES = 1437


def load_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the digits; a fixed shuffle splits them into 1,437 for training and 360 for testing.

    Returns:
        `{"train": (images, labels), "test": (images, labels)}`: images uint8 (examples, 8, 8, 1) from 0 to 255,
        labels int32 (examples,).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images[..., None] * (255 / 16)).astype(np.uint8)
    labels = bunch.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:TRAIN_EXAMPLES], order[TRAIN_EXAMPLES:]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
