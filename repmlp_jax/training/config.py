"""The fields of a configuration, their defaults, and their checks."""

import itertools
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from repmlp_jax.models.pspnet import AUXILIARY_WEIGHT
from repmlp_jax.nearest import nearest
from repmlp_jax.training.model_arguments import problems_of_arguments

CHOICES = {
    "task": ("classification", "faces", "segmentation"),
    "optimizer": ("sgd", "adamw", "lamb", "lion", "muon"),
    "schedule": ("cosine", "linear", "poly", "steps", "constant"),
    "augmentation": ("", "autoaugment", "randaugment"),
    "init_head": ("load", "skip"),
    "final_weights": ("last", "best"),
}
# What values must be, whether one is, and of which fields.
RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    (
        "be above 0",
        lambda value: value > 0,
        (
            *("batch_size", "eval_batch_size", "accumulate", "eval_every_epochs"),
            *("learning_rate", "poly_power", "scale"),
        ),
    ),
    (
        "not be below 0",
        lambda value: value >= 0,
        (
            *("epochs", "warmup_epochs", "weight_decay", "clip_norm", "crop_padding", "mixup", "cutmix", "num_people"),
            *("margin", "auxiliary_weight", "workers", "steps_per_call", "log_every_steps", "profile_steps"),
            *("checkpoint_every_steps", "checkpoint_every_seconds", "loss_scale", "patience"),
        ),
    ),
    ("be from 0 to below 1", lambda value: 0 <= value < 1, ("label_smoothing", "momentum", "ema_decay", "val_share")),
    ("be above 0 and not above 1", lambda value: 0 < value <= 1, ("layer_decay",)),
    ("be from 0 to 2³² - 1", lambda value: 0 <= value < 2**32, ("seed",)),  # JAX takes others for one of these
    (
        "be fractions between 0 and 1 in increasing order",
        lambda value: all(low < high for low, high in itertools.pairwise((0, *value, 1))),
        ("drop_at",),
    ),
    (
        "be (smallest, largest) factor, both above 0",
        lambda value: len(value) == 2 and 0 < value[0] <= value[1],
        ("crop_scale",),
    ),
)


def default_config() -> ConfigDict:
    """Every field with its default: the paper's recipe for the pure MLP on CIFAR-10.

    The page on recipes takes its tables from here: a comment on a line of its own begins a group, one behind a field
    says what the field is.
    """
    return ConfigDict(
        dict(
            # Task and model
            task="classification",  # "classification", "faces" or "segmentation"
            seed=0,  # for the initial weights, the order of the data and the augmentation
            model="pure_mlp",  # one of list_models()
            model_arguments={},  # arguments of the model's class, in addition to those of its name
            init_from="",  # weights to start from: a saved model, also hf://OWNER/NAME, or a file of official weights
            init_head="load",  # "skip": the classifier keeps its initial weights, for other classes
            # Data
            dataset="cifar10",  # "cifar10", "digits"; streamed: "folder", or the name of a TFDS dataset
            test_dataset="",  # for faces: the dataset to verify on; "": the test split of `dataset`
            num_people=0,  # for streamed faces: number of people in the dataset; 0: the dataset is held on the devices
            eval_split="val",  # for street scenes: the split to evaluate on
            data_dir="",  # path of "folder", or of the TFDS datasets; "": TFDS_DATA_DIR, or TFDS's default
            val_share=0.0,  # for "folder" without val/ or test/: share of the pictures in data_dir/CLASS to hold out
            workers=0,  # processes that read and decode streamed data; 0: the training process itself
            # Optimisation
            epochs=100,  # 0: only evaluate and fuse the model of init_from
            batch_size=128,  # of all devices together; an epoch leaves out the last images that fill no batch
            accumulate=1,  # parts of a batch; they are computed one after another to save memory
            optimizer="sgd",  # "sgd", "adamw", "lamb", "lion", or "muon"
            learning_rate=0.2,  # at its peak, after the warm-up
            schedule="cosine",  # "cosine", "linear" or "poly" to 0, "steps", or "constant"
            poly_power=0.9,  # exponent of "poly"
            drop_at=(0.6, 0.867, 0.967),  # for "steps": fractions of the training after which the rate is divided by 10
            warmup_epochs=0.0,  # the learning rate rises linearly from 0 in these epochs
            momentum=0.9,  # of "sgd"
            weight_decay=1e-4,  # of kernels only, not of biases and norms
            clip_norm=0.0,  # largest global norm of the gradients; 0: no clipping
            loss_scale=0.0,  # for float16: initial factor of the loss, such as 32768; it adapts; 0: none
            ema_decay=0.0,  # share of the averaged weights that a step keeps, such as 0.9999; 0: no average
            # Fine-tuning
            freeze="",  # parts that do not train, with commas between, such as "embedding,stages.0" or "*.norm"
            train_only="",  # the only parts that train, such as "head"
            layer_decay=1.0,  # factor of the learning rate from each block to the one before it
            rate_factors="",  # factors of the learning rates of parts, such as "head=10,embedding=0.1"
            # Devices
            mesh=dict(data=0, fsdp=1),  # copies of the model (0: as many as fit) × devices that share a copy
            # Augmentation and loss
            label_smoothing=0.0,  # share of the target that is spread over all classes
            crop_padding=4,  # pixels of zeros around an image before the random crop; 0: no crop
            flip=True,  # mirror half of the images
            augmentation="",  # for streamed images, besides crops and flips: "autoaugment" or "randaugment"
            crop_scale=(0.5, 2.0),  # for street scenes: smallest and largest scale factor before the crop
            margin=0.35,  # of AM-Softmax: subtracted from the cosine with the true class
            scale=30.0,  # of AM-Softmax: factor of the cosines
            auxiliary_weight=AUXILIARY_WEIGHT,  # of the loss of PSPNet's auxiliary head
            mixup=0.0,  # alpha of mixup; 0: off
            cutmix=0.0,  # alpha of CutMix; 0: off; with both on, each batch draws one of them
            # Evaluation, checkpoints and logs
            eval_batch_size=500,  # of all devices together
            eval_every_epochs=1,  # and after the last epoch
            patience=0,  # epochs without a better test score after which the run ends; 0: it never ends early
            calibration=False,  # also measure the expected calibration error, of the confidence in 15 bins
            final_weights="last",  # saved as `model`: the "last" weights, or those of the "best" test score
            checkpoint_every_steps=0,  # in addition to each epoch's end; 0: none
            checkpoint_every_seconds=30.0,  # shortest time between two checkpoints, except the last; 0: no limit
            log_every_steps=0,  # steps between rows of metrics.csv, in addition to each epoch's end; 0: none
            profile_steps=0,  # training steps that jax.profiler traces after the first call; 0: none
            steps_per_call=0,  # training steps between two checks of the loss; 0: about a second of them
        )
    )


# Values for fields that the configurations of earlier versions lack: what those versions did.
BEFORE = {
    **{"checkpoint_every_seconds": 0.0, "log_every_steps": 0, "profile_steps": 0},
    **{"patience": 0, "final_weights": "last", "calibration": False, "val_share": 0.0},
    **{"ema_decay": 0.0, "loss_scale": 0.0, "freeze": "", "train_only": "", "layer_decay": 1.0, "rate_factors": ""},
}
# Fields that a process of a run may set differently from the others.
OF_A_PROCESS = ("data_dir", "workers", "checkpoint_every_seconds", "profile_steps")
# Fields that do not change what is learned: a resumed run may set them differently.
FREE = (
    *OF_A_PROCESS,
    *("mesh", "eval_batch_size", "eval_every_epochs", "log_every_steps", "steps_per_call", "checkpoint_every_steps"),
    *("patience", "final_weights", "calibration"),
)
# Fields that change only the state before the first step.
FREE_ONCE_STARTED = ("init_from", "init_head")


def check_config(config: ConfigDict) -> ConfigDict:
    """A copy of a configuration with plain Python values in place of NumPy's and JAX's.

    Raises:
        TypeError: if it is no `ConfigDict`.
        ValueError: for fields that do not exist, are missing or have impossible values, all in one message.
    """
    if not isinstance(config, ConfigDict):
        hint = ": call it" if callable(config) else ""
        raise TypeError(f"config must be a ConfigDict, as default_config() returns, and not {config!r:.100}{hint}")
    config = ConfigDict({name: _plain(value) for name, value in config.items()})
    known = default_config()
    problems = [
        f"there is no field {name!r}; the nearest is {nearest(str(name), known)!r}"
        for name in sorted(set(config) - set(known), key=str)
    ]
    problems += [f"field {name!r} is missing" for name in sorted(set(known) - set(config))]
    mistyped = {name: kind for name, value in known.items() if (kind := _kind_missed(config.get(name, value), value))}
    problems += [f"{name}={config[name]!r} must be {kind}" for name, kind in mistyped.items()]
    # Of the fields with a value of the right type.
    values = {name: value for name, value in config.items() if name not in mistyped}
    problems += [
        f"{name}={values[name]} must {words}"
        for words, is_right, names in RANGES
        for name in names
        if name in values and not is_right(values[name])
    ]
    for name, works in CHOICES.items():
        if values.get(name, works[0]) not in works:
            problems.append(
                f"{name}={config[name]!r} must be one of {', '.join(map(repr, works))}; "
                f"the nearest is {nearest(config[name], works)!r}"
            )
    if values.get("batch_size", 1) % max(1, values.get("accumulate", 1)):
        problems.append(f"accumulate={config.accumulate} does not divide batch_size={config.batch_size}")
    dtypes = values.get("model_arguments", {})
    if values.get("loss_scale") and (str(dtypes.get("dtype")), dtypes.get("param_dtype") or "float32") != HALF:
        problems.append(
            f"loss_scale={config.loss_scale} is for model_arguments.dtype=float16 with param_dtype=float32: bfloat16 "
            f"and float32 need no scale"
        )
    if values.get("warmup_epochs", 0) >= values.get("epochs", math.inf) > 0:
        problems.append(f"warmup_epochs={config.warmup_epochs} must be less than epochs={config.epochs}")
    if values.get("final_weights") == "best" and values.get("epochs") == 0:
        problems.append("final_weights='best' needs epochs above 0: without training, no weights are tested")
    mesh = values.get("mesh", {})
    problems += [f"mesh has no field {name!r}: it has data and fsdp" for name in sorted(set(mesh) - set(known.mesh))]
    problems += [f"mesh.{name}={value!r} must be {INTEGER}" for name, value in mesh.items() if _kind_missed(value, 0)]
    problems += problems_of_arguments(values.get("model"), values.get("model_arguments", ConfigDict()))
    if problems:
        raise ValueError("config: " + "; ".join(problems))
    return config


INTEGER = "an integer"
HALF = ("float16", "float32")  # dtypes that are computed in, and that parameters are kept in


def _kind_missed(value, default) -> str:
    """What a value must be, where it is not of the kind of the default; empty where it is."""
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "True or False"
    if isinstance(default, int):
        return "" if isinstance(value, int) and not isinstance(value, bool) else INTEGER
    if isinstance(default, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if is_number and math.isfinite(value) else "a finite number"
    if isinstance(default, str):
        # None was and is the same as "" where a field may be empty.
        return "" if isinstance(value, str) or (value is None and not default) else "text"
    if isinstance(default, tuple):
        is_tuple = isinstance(value, list | tuple) and not any(_kind_missed(number, 0.0) for number in value)
        return "" if is_tuple else "a tuple of numbers"
    return "" if isinstance(value, ConfigDict) else "a dictionary"


def _plain(value):
    """A value as JSON has it: NumPy's and JAX's numbers and arrays as Python's, a dtype as its name."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if isinstance(value, ConfigDict | dict):
        return ConfigDict({name: _plain(item) for name, item in value.items()})
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    try:
        return jnp.dtype(value).name
    except TypeError:
        return value


def differences(one: dict, other: dict, free: Collection[str] = FREE) -> list[str]:
    """Lists the fields that are not free and differ between two configurations, with both values."""
    one, other = ({**BEFORE, **config} for config in (one, other))
    return [
        f"{name} is {one.get(name, 'missing')!r} now and {other.get(name, 'missing')!r} there"
        for name in sorted({*one, *other}.difference(free))
        if one.get(name) != other.get(name)
    ]
