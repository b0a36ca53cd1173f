"""What can be learned: each task has its data, its loss and its scores, and one loop trains them all."""

from pathlib import Path

from ml_collections import ConfigDict


def train_and_evaluate(config: ConfigDict, workdir: str | Path) -> dict:
    """Trains a model, fuses it, and compares both: `training.loop.train` of the task that `config.task` names.

    Args:
        config: as `default_config()`.
        workdir: the run's folder; it is made.

    Returns:
        What `results.json` holds, see `results.fuse_and_save`.

    Raises:
        ValueError: as `training.loop.train`, and all else that it raises.
    """
    from repmlp_jax.training.loop import train

    return train(config, workdir, task_class(config.get("task")))


def task_class(name: str) -> type:
    """The task of that name; what it reads data with is imported only then."""
    if name == "faces":
        from repmlp_jax.tasks.faces.task import Faces

        return Faces
    if name == "segmentation":
        from repmlp_jax.tasks.segmentation.task import Segmentation

        return Segmentation
    from repmlp_jax.tasks.classification import Classification

    return Classification
