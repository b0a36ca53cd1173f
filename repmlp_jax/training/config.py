"""The fields of a configuration, their defaults, and their checks."""

import inspect
import math
from collections.abc import Collection

from ml_collections import ConfigDict

from repmlp_jax.models.pspnet import AUXILIARY_WEIGHT
from repmlp_jax.models.registry import MODELS
from repmlp_jax.nearest import nearest

CHOICES = {
    "task": ("classification", "faces", "segmentation"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("cosine", "poly", "steps"),
    "augmentation": ("", "autoaugment", "randaugment"),
    "init_head": ("load", "skip"),
}
POSITIVE = (
    *("batch_size", "eval_batch_size", "accumulate", "eval_every_epochs"),
    *("learning_rate", "poly_power", "scale"),
)
NOT_NEGATIVE = (
    *("epochs", "warmup_epochs", "weight_decay", "clip_norm", "crop_padding", "mixup", "cutmix", "num_people"),
    *("margin", "auxiliary_weight", "workers", "steps_per_call", "log_every_steps", "profile_steps"),
    *("checkpoint_every_steps", "checkpoint_every_seconds"),
)


def default_config() -> ConfigDict:
    """Every field with its default: the paper's recipe for the pure MLP on CIFAR-10."""
    return ConfigDict(
        dict(
            task="classification",  # "classification", "faces" or "segmentation"
            seed=0,  # of initial weights, order and augmentation
            model="pure_mlp",  # one of list_models()
            model_arguments={},  # of the model's class, in addition to those of its name
            init_from="",  # weights to start from: a saved model's folder, or a file of official PyTorch weights
            init_head="load",  # "skip": the classifier keeps its initial weights, as it has other classes
            dataset="cifar10",  # "cifar10", "digits", or the name of a TFDS dataset, which is streamed
            test_dataset="",  # for faces: the dataset to verify on; "": the test split of `dataset`
            num_people=0,  # for streamed faces: people in the dataset; 0: the dataset fits on the devices
            eval_split="val",  # for street scenes: the split to evaluate on
            data_dir="",  # folder of TFDS datasets; "": TFDS_DATA_DIR, or TFDS's default
            workers=0,  # processes that read and decode streamed data; 0: the training process itself
            epochs=100,  # 0: only evaluate and fuse the model of init_from
            batch_size=128,  # of all devices together; an epoch's last images that fill no batch wait for the next
            accumulate=1,  # parts of a batch, computed one after another to save memory
            optimizer="sgd",  # "sgd" or "adamw"
            learning_rate=0.2,  # at its peak, after the warm-up
            schedule="cosine",  # "cosine" to 0, "poly" to 0, or "steps"
            poly_power=0.9,  # of "poly"
            drop_at=(0.6, 0.867, 0.967),  # of "steps": fractions of the training after which the rate is divided by 10
            warmup_epochs=0.0,
            momentum=0.9,  # of "sgd"
            weight_decay=1e-4,  # of kernels only, not of biases and norms
            clip_norm=0.0,  # largest global norm of the gradients; 0: no clipping
            mesh=dict(data=0, fsdp=1),  # devices: rows that split a batch × devices that share a model; 0: the rest
            label_smoothing=0.0,
            crop_padding=4,  # pixels of zeros around an image before the random crop; 0: no crop
            flip=True,  # mirror half of the images
            augmentation="",  # for streamed images, besides crops and flips: "autoaugment" or "randaugment"
            crop_scale=(0.5, 2.0),  # for street scenes: smallest and largest scale factor before the crop
            margin=0.35,  # of AM-Softmax: subtracted from the cosine with the true class
            scale=30.0,  # of AM-Softmax: factor of the cosines
            auxiliary_weight=AUXILIARY_WEIGHT,  # of the loss of PSPNet's auxiliary head
            mixup=0.0,  # alpha of mixup; 0: off
            cutmix=0.0,  # alpha of CutMix; 0: off; with both on, each batch draws one of them
            eval_batch_size=500,
            eval_every_epochs=1,  # and after the last epoch
            checkpoint_every_steps=0,  # in addition to each epoch's end; 0: none
            checkpoint_every_seconds=30.0,  # least time between two checkpoints, except the last; 0: no limit
            log_every_steps=0,  # steps between rows of metrics.csv, in addition to each epoch's end; 0: none
            profile_steps=0,  # training steps that jax.profiler traces after the first call; 0: none
            steps_per_call=0,  # training steps between two checks of the loss; 0: about a second of them
        )
    )


# Values for fields that the configurations of earlier versions lack: what those versions did.
BEFORE = {"checkpoint_every_seconds": 0.0, "log_every_steps": 0, "profile_steps": 0}
# Fields that a process of a run may set differently from the others.
OF_A_PROCESS = ("data_dir", "workers", "checkpoint_every_seconds", "profile_steps")
# Fields that do not change what is learned: a resumed run may set them differently.
FREE = (
    *OF_A_PROCESS,
    *("mesh", "eval_batch_size", "eval_every_epochs", "log_every_steps", "steps_per_call", "checkpoint_every_steps"),
)
# Fields that change only the state before the first step.
FREE_ONCE_STARTED = ("init_from", "init_head")


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for fields that do not exist, are missing or have impossible values, all in one message."""
    known = default_config()
    unknown = sorted(set(config) - set(known))
    problems = [f"there is no field {name!r}; the nearest is {nearest(name, known)!r}" for name in unknown]
    problems += [f"field {name!r} is missing" for name in sorted(set(known) - set(config))]
    problems += [f"{name}={config[name]} must be above 0" for name in POSITIVE if not config.get(name, 1) > 0]
    problems += [f"{name}={config[name]} must not be below 0" for name in NOT_NEGATIVE if not config.get(name, 0) >= 0]
    for name, works in CHOICES.items():
        if config.get(name, works[0]) not in works:
            problems.append(
                f"{name}={config[name]!r} is none of {', '.join(map(repr, works))}; "
                f"the nearest is {nearest(str(config[name]), works)!r}"
            )
    if config.get("batch_size", 1) % max(1, config.get("accumulate", 1)):
        problems.append(f"accumulate={config.accumulate} does not divide batch_size={config.batch_size}")
    if config.get("warmup_epochs", 0) >= config.get("epochs", math.inf) > 0:
        problems.append(f"warmup_epochs={config.warmup_epochs} must be less than epochs={config.epochs}")
    problems += _problems_of_model_arguments(config)
    if problems:
        raise ValueError("config: " + "; ".join(problems))


def _problems_of_model_arguments(config):
    if config.get("model") not in MODELS:
        return  # create_model names the nearest
    model_class, _ = MODELS[config.model]
    known = set(inspect.signature(model_class.__init__).parameters) - {"self", "rngs"}
    for name in sorted(set(config.get("model_arguments", {})) - known):
        yield f"{model_class.__name__} has no argument {name!r}; the nearest is {nearest(name, known)!r}"


def differences(one: dict, other: dict, free: Collection[str] = FREE) -> list[str]:
    """Lists the fields that are not free and differ between two configurations, with both values."""
    one, other = ({**BEFORE, **config} for config in (one, other))
    return [
        f"{name} is {one.get(name, 'missing')!r} now and {other.get(name, 'missing')!r} there"
        for name in sorted({*one, *other}.difference(free))
        if one.get(name) != other.get(name)
    ]
