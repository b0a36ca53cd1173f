"""Tasks: each has its data, its loss and its scores, and one loop trains them all."""

import os
from pathlib import Path

from repmlp_jax.data import FOLDER, LOADERS
from repmlp_jax.extras import name_extra
from repmlp_jax.training.callback import OnRow

with name_extra():
    from ml_collections import ConfigDict


def train_and_evaluate(config: ConfigDict, workdir: str | Path, on_row: OnRow | None = None) -> dict:
    """Trains a model, fuses it, and compares both: calls `training.loop.train` with the task of `config.task`.

    Args:
        config: as `default_config()`.
        workdir: the run's folder; it is created.
        on_row: gets each row of metrics as a dict, once it is on disk: `epoch`, `step`, `learning_rate`, `train_loss`,
            `train_accuracy`, `images_per_second`, and `test_NAME` for each score if the model was evaluated. Only
            process 0 calls it. If it raises an error, the run saves its state and then raises that error; the same call
            resumes it. A resumed run repeats rows that a killed run had not yet saved in a checkpoint.

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
    if not (on_row is None or callable(on_row)):
        raise TypeError(f"on_row must be a function of a dict, not {on_row!r}")
    config = check_config(config)
    check_task_fields(config)
    return train(config, workdir, task_class(config.task), on_row)


# Fields of some tasks only.
OF_TASKS = {
    **dict.fromkeys(("mixup", "cutmix", "calibration"), ("classification",)),
    **dict.fromkeys(("num_people", "test_dataset", "margin", "scale"), ("faces",)),
    **dict.fromkeys(("eval_split", "crop_scale", "auxiliary_weight"), ("segmentation",)),
    "label_smoothing": ("classification", "segmentation"),
}


def check_task_fields(config: ConfigDict) -> None:
    """Raises ValueError for fields that ask for what the task does not do, or not with the dataset."""
    from repmlp_jax.training.config import default_config

    default = default_config()
    problems = [
        f"{name}={config[name]!r} is for task={' or '.join(map(repr, tasks))}"
        for name, tasks in OF_TASKS.items()
        if config.task not in tasks and config[name] not in (default[name], None)
    ]
    in_memory = config.dataset in LOADERS
    if config.augmentation and (config.task != "classification" or in_memory):
        problems.append(f"augmentation={config.augmentation!r} is for streamed pictures with one label each")
    if config.dataset == FOLDER and config.task != "classification":
        problems.append(f"dataset={FOLDER!r} is for task='classification'")
    if config.val_share and config.dataset != FOLDER:
        problems.append(f"val_share={config.val_share} is for dataset={FOLDER!r}")
    if not config.flip and config.task == "segmentation":
        problems.append("flip=False is for task='classification' or 'faces': street scenes are mirrored")
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
