"""Tasks: each has its data, its loss and its scores, and one loop trains them all."""

from pathlib import Path

from ml_collections import ConfigDict


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a model, fuses it, and compares both: calls `training.loop.train` with the task of `config.task`.

    Args:
        config: as `default_config()`.
        workdir: the run's folder; it is created.

    Returns:
        The content of `results.json`, see `results.fuse_and_save`.

    Raises:
        ValueError: as `training.loop.train`, which lists further errors.
    """
    from repmlp_jax.training.loop import train

    return train(config, workdir, task_class(config.get("task")))


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
