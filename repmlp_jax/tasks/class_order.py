"""Which class of a model is which class of a dataset: by name where both have names."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from repmlp_jax.listing import listed


def class_order(
    names: Sequence[str],
    classes: int,
    dataset_names: Sequence[str],
    dataset_classes: int,
    *,
    model: str = "the model",
    dataset: str = "the dataset",
) -> Int32[np.ndarray, " classes"]:
    """The model's number of each class of a dataset.

    Classes are matched by name, or by number if the model or the dataset has no names.

    Args:
        names: of the model's classes; empty if it has none.
        classes: number of the model's classes.
        dataset_names: of the dataset's classes; empty if it has none.
        dataset_classes: number of the dataset's classes.
        model: what the messages call the model.
        dataset: what they call the dataset.

    Raises:
        ValueError: if names or numbers of classes differ, the model's names are not as many as its classes, or names
            that occur twice stand in another order; the message says what differs.
    """
    if names and len(names) != classes:
        raise ValueError(f"{model} has {len(names)} class names for {classes} classes")
    if not (names and dataset_names):
        if classes != dataset_classes:
            why = f"{dataset if names else model} has no" if names or dataset_names else "neither has"
            raise ValueError(
                f"{model} has {classes} classes, {dataset} {dataset_classes}; they are compared by number, since {why} "
                f"class names"
            )
        return np.arange(classes, dtype=np.int32)
    if tuple(names) == tuple(dataset_names):
        return np.arange(classes, dtype=np.int32)
    if set(names) != set(dataset_names):
        only_model = [name for name in names if name not in set(dataset_names)]
        only_dataset = [name for name in dataset_names if name not in set(names)]
        raise ValueError(
            f"{model} has {classes} classes, {dataset} {dataset_classes}, and their names differ: only {model} has "
            f"{listed(map(repr, only_model)) or 'none'}; only {dataset} has {listed(map(repr, only_dataset)) or 'none'}"
        )
    places = {name: number for number, name in enumerate(names)}
    if not len(places) == classes == dataset_classes:
        twice = [name for name in places if names.count(name) > 1 or dataset_names.count(name) > 1]
        raise ValueError(
            f"{model} has {classes} classes, {dataset} {dataset_classes}, of the same names in another order, and "
            f"{listed(map(repr, twice))} occurs more than once: which is which cannot be told"
        )
    return np.array([places[name] for name in dataset_names], np.int32)
