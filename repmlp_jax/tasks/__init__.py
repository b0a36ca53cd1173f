"""Tasks: each has its data, its loss and its scores, and one loop trains them all."""

import os
from pathlib import Path

from ml_collections import ConfigDict

from repmlp_jax.data import LOADERS


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a model, fuses it, and compares both: calls `training.loop.train` with the task of `config.task`.

    Args:
        config: as `default_config()`.
        workdir: the run's folder; it is created.

    Returns:
        The content of `results.json`, see `results.fuse_and_save`.

    Raises:
        TypeError: if an argument is not of its type.
        ValueError: as `training.loop.train`, which lists further errors, and for a field that asks for what the task
            does not do.
    """
    from repmlp_jax.training.config import check_config
    from repmlp_jax.training.loop import train

    if not isinstance(workdir, str | os.PathLike):
        raise TypeError(f"workdir must be a path, not {workdir!r}")
    config = check_config(config)
    check_task_fields(config)
    return train(config, workdir, task_class(config.task))


def check_task_fields(config: ConfigDict) -> None:
    """Raises ValueError for fields that ask for what the task, or a dataset that lies in memory, does not do."""
    is_streamed = config.dataset not in LOADERS
    is_classification = config.task == "classification"
    pictures = "streamed pictures" if is_classification else "street scenes"
    refused = [
        ("augmentation", is_classification and is_streamed, "is for streamed pictures with one label each"),
        ("mixup", is_classification, "is for task='classification'"),
        ("cutmix", is_classification, "is for task='classification'"),
        ("label_smoothing", config.task != "faces", "is not for task='faces'"),
        ("num_people", config.task == "faces", "is for task='faces'"),
        ("test_dataset", config.task == "faces", "is for task='faces'"),
    ]
    problems = [f"{name}={config[name]!r} {why}" for name, works, why in refused if config[name] and not works]
    if not config.flip and (config.task == "segmentation" or (is_classification and is_streamed)):
        problems.append(f"flip=False: half of all {pictures} are mirrored in training")
    if problems:
        raise ValueError(f"config, with task={config.task!r} and dataset={config.dataset!r}: {'; '.join(problems)}")


def task_class(name: str) -> type:
    """The class of a task; the modules that read its data are imported only here."""
    if name == "faces":
        from repmlp_jax.tasks.faces.task import Faces

        return Faces
    if name == "segmentation":
        from repmlp_jax.tasks.segmentation.task import Segmentation

        return Segmentation
    from repmlp_jax.tasks.classification import Classification

    return Classification
