"""What can be configured, and the check that a configuration says nothing else."""

import inspect
import math

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
            model_arguments={},  # of the model's class, besides those of the name
            init_from="",  # weights to start from: a saved model's folder, or a file of official PyTorch weights
            init_head="load",  # "skip": the classifier keeps its initial weights, as it has other classes
            dataset="cifar10",  # "cifar10", "digits", or the name of a TFDS dataset, which is streamed
            test_dataset="",  # of faces, that to verify on; "": the test split of `dataset`
            num_people=0,  # of faces that are streamed: how many there are; 0: the dataset fits on the devices
            eval_split="val",  # of street scenes: the split to evaluate on
            data_dir="",  # folder of TFDS datasets; "": TFDS_DATA_DIR, or TFDS's default
            workers=0,  # processes that read and decode streamed data; 0: the training process itself
            epochs=100,  # 0: only evaluate and fuse what init_from holds
            batch_size=128,  # of all devices together; an epoch's last images that fill no batch wait for the next
            accumulate=1,  # parts that a batch is done in, one after another, to need less memory
            optimizer="sgd",  # "sgd" or "adamw"
            learning_rate=0.2,  # at its peak, after the warm-up
            schedule="cosine",  # "cosine" to 0, "poly" to 0, or "steps"
            poly_power=0.9,  # of "poly"
            drop_at=(0.6, 0.867, 0.967),  # of "steps": shares of the training after which the rate is divided by 10
            warmup_epochs=0.0,
            momentum=0.9,  # of "sgd"
            weight_decay=1e-4,  # of kernels; not of biases and norms
            clip_norm=0.0,  # largest norm of all gradients together; 0: as they are
            mesh=dict(data=0, fsdp=1),  # devices: rows that split a batch, times those that share a model; 0: the rest
            label_smoothing=0.0,
            crop_padding=4,  # pixels of zeros around an image before the random crop; 0: no crop
            flip=True,  # mirror half of the images
            augmentation="",  # of streamed images, besides crops and flips: "autoaugment" or "randaugment"
            crop_scale=(0.5, 2.0),  # of street scenes: least and greatest factor of the size before a crop
            margin=0.35,  # of AM-Softmax: what is taken off the cosine with one's own class
            scale=30.0,  # of AM-Softmax: what the cosines are multiplied by
            auxiliary_weight=AUXILIARY_WEIGHT,  # of the loss of PSPNet's auxiliary head
            mixup=0.0,  # alpha of mixup; 0: off
            cutmix=0.0,  # alpha of CutMix; 0: off; where both are on, each batch draws one
            eval_batch_size=500,
            eval_every_epochs=1,  # and at the end
            checkpoint_every_steps=0,  # besides that of every epoch's end; 0: none
            checkpoint_every_seconds=30.0,  # least time between two, but for the last; 0: no limit
            log_every_steps=0,  # a row of metrics.csv so often, besides that of every epoch's end; 0: none
            profile_steps=0,  # how many training steps jax.profiler traces, after the first call; 0: none
            steps_per_call=0,  # training steps between two looks at the loss; 0: as many as take about a second
        )
    )


# What a run of an earlier version did, whose configuration lacks a field that came later.
BEFORE = {"checkpoint_every_seconds": 0.0, "log_every_steps": 0, "profile_steps": 0}
# How a run is carried out and not what is learned: it may change from one start of a run to the next.
FREE = ("mesh", "workers", "checkpoint_every_seconds", "profile_steps")


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


def differences(one: dict, other: dict) -> list[str]:
    """The fields that decide what is learned and that differ in two configurations, with the values of both."""
    one, other = ({**BEFORE, **config} for config in (one, other))
    return [
        f"{name} is {one.get(name, 'missing')!r} now and {other.get(name, 'missing')!r} there"
        for name in sorted({*one, *other}.difference(FREE))
        if one.get(name) != other.get(name)
    ]
