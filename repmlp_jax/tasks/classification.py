"""Classification of datasets that fit on the devices (CIFAR-10, digits) or are streamed (ImageNet)."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from repmlp_jax.data import FOLDER, LOADERS, augment, load_dataset, open_dataset
from repmlp_jax.data.mixing import mix
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.output_shape import output_shape
from repmlp_jax.models.randomness import abstract
from repmlp_jax.models.registry import MODELS
from repmlp_jax.models.state import head_places
from repmlp_jax.progress import print_line
from repmlp_jax.storage.models import is_saved_model, load, model_path
from repmlp_jax.tasks.class_order import class_order
from repmlp_jax.tasks.class_scores import are_right, batch_metrics, extra_scores, mean_metrics, predicted_classes
from repmlp_jax.tasks.confusion import write_confusion
from repmlp_jax.training.evaluation import Evaluator, ResidentBatches, StreamedBatches
from repmlp_jax.training.feed import ResidentFeed, StreamedFeed
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.model_arguments import arguments_of
from repmlp_jax.training.resuming import check_same
from repmlp_jax.training.task import ConfiguredTask, check_crop_padding, stream_part


class Classification(ConfiguredTask):
    """One label for each image; the loss is the softmax cross-entropy.

    Args:
        config: as `default_config()`.
        mesh: the devices.
        order_key: seed of the order of the examples and of their augmentation on the host.

    Raises:
        ValueError: if there is no such model or dataset, or their sizes of images or numbers of classes differ; with
            `epochs=0`, also if the classes of `init_from` have other names or stand in another order.
    """

    best = "accuracy"
    correct_dtype = jnp.int32

    def __init__(self, config, mesh, order_key):
        self._config = config
        net: Any = abstract(self.make_model)
        load = self._load_resident if config.dataset in LOADERS else self._load_streamed
        dataset, self.feed, batches = load(config, input_shape_of(net), mesh, order_key)
        self._mean, self._std = dataset.mean, dataset.std
        self.preprocessing = dict(mean=dataset.mean, std=dataset.std, class_names=dataset.class_names)
        if config.val_share:  # by which an evaluation finds the pictures that were held out
            self.preprocessing["val_share"] = config.val_share
        if output_shape(net) != (dataset.num_classes,) and _takes_number_of_classes(config):
            self._config = config.copy_and_resolve_references()
            self._config.model_arguments.num_classes = dataset.num_classes
            net = abstract(self.make_model)
        self._classes = _check_classes(config, net, dataset.num_classes)
        if not config.epochs and config.init_head == "load":
            _check_order(config.init_from, config.dataset, dataset)
        extra = extra_scores(self._classes, config.calibration)
        self.scores = ("loss", "accuracy", *extra)
        of_batch = functools.partial(batch_metrics, extra=extra)
        mean = functools.partial(mean_metrics, extra=extra)
        self.evaluator = Evaluator(batches, self._predict, of_batch, mean, mesh, predicted_classes)

    def report(self, workdir, comparison):
        """Writes which classes the fused model confuses."""
        found = comparison.of_examples
        labels, predicted = (found[name][found["mask"]] for name in ("label", "predicted"))
        names = self.preprocessing["class_names"] or tuple(map(str, range(self._classes)))
        write_confusion(workdir, labels, predicted, names)

    @staticmethod
    def _load_resident(config, input_shape, mesh, order_key):
        dataset = load_dataset(config.dataset, config.data_dir or None)
        check_size(config.model, input_shape, config.dataset, dataset.train[0].shape[1:])
        check_crop_padding(config, input_shape[:2])
        train, test = (dict(zip(("image", "label"), split, strict=True)) for split in (dataset.train, dataset.test))
        feed = ResidentFeed(train, config.batch_size, order_key, mesh)
        return dataset, feed, ResidentBatches(test, config.eval_batch_size, mesh)

    @staticmethod
    def _load_streamed(config, input_shape, mesh, order_key):
        from repmlp_jax.data.imagenet import evaluation_example, training_example
        from repmlp_jax.data.policies import POLICIES
        from repmlp_jax.data.stream import evaluation_stream, make_stream

        *size, channels = input_shape
        if config.augmentation and channels != 3:
            raise ValueError(
                f"augmentation={config.augmentation!r} distorts pictures in RGB, and {config.model!r} takes images of "
                f"{channels} channels"
            )
        dataset = open_dataset(config.dataset, config.data_dir or None, channels, val_share=config.val_share)
        if config.dataset == FOLDER:
            _show(dataset)
        seed, part = int(jax.random.bits(order_key, dtype=jnp.uint32)), stream_part(config)
        example = dict(size=tuple(size), num_classes=dataset.num_classes, channels=channels)
        train_on = functools.partial(
            training_example, **example, policy=POLICIES.get(config.augmentation), mirrored=config.flip
        )
        evaluate_on = functools.partial(evaluation_example, **example)

        def open_stream(step):
            return make_stream(dataset.train, train_on, batch_size=config.batch_size, seed=seed, start=step, **part)

        def open_evaluation():
            return evaluation_stream(dataset.validation, evaluate_on, batch_size=config.eval_batch_size, **part)

        feed = StreamedFeed(open_stream, len(dataset.train), mesh)
        return dataset, feed, StreamedBatches(open_evaluation, mesh)

    def loss(self, model, batch, key):
        """See `loss_of_batch`."""
        return loss_of_batch(
            model, batch, key, config=self._config, classes=self._classes, mean=self._mean, std=self._std
        )

    def _predict(self, model, batch):
        return model(augment.normalise(batch["image"], self._mean, self._std))


def loss_of_batch(model, batch, key, *, config, classes, mean, std):
    """The mean loss of a batch and its number of correctly classified images.

    For mixed images the correct label is the one with the largest share.

    Args:
        model: maps normalised NHWC images to logits.
        batch: `image`, NHWC of type uint8, and `label`.
        key: of the augmentation on the devices.
        config: as `default_config()`.
        classes: number of classes.
        mean: of each channel of the dataset.
        std: of each channel.
    """
    augment_key, mix_key = jax.random.split(key)
    images = batch["image"]
    if config.dataset in LOADERS:  # Streamed images are cropped and mirrored when they are decoded.
        images = augment.crop_and_flip(augment_key, images, padding=config.crop_padding, flipped=config.flip)
    targets = jax.nn.one_hot(batch["label"], classes, dtype=jnp.float32)
    targets = optax.smooth_labels(targets, config.label_smoothing)
    images = augment.normalise(images, mean, std)
    images, targets = mix(mix_key, images, targets, mixup=config.mixup, cutmix=config.cutmix)
    logits = model(images)
    losses = cross_entropy(logits, targets)
    return losses.mean(), are_right(logits, jax.lax.argmax(targets, 1, jnp.int32)).sum(dtype=jnp.int32)


def _check_order(init_from: str, name: str, dataset):
    """Refuses a saved model whose classes are not the dataset's: without training they would be scored by number."""
    if not init_from or not is_saved_model(path := model_path(init_from)):
        return
    saved = load(path)
    names = saved.preprocessing.get("class_names") or ()
    classes = output_shape(saved.model)[-1]
    order = class_order(names, classes, dataset.class_names, dataset.num_classes, model=init_from, dataset=name)
    if (order != np.arange(classes)).any():
        raise ValueError(
            f"{init_from} has the classes of {name} in another order, and epochs=0 would not train it to this one: use "
            f"`repmlp-jax evaluate`, which matches classes by name"
        )


def _show(images):
    """Prints what there is to train on; every process of a run has to see the same files."""
    from repmlp_jax.data.looking import look

    if jax.process_count() > 1:
        check_same("list of files in data_dir", [images.train.names(), images.validation.names()])
    found = look(images)
    if jax.process_index() == 0:
        print_line(found)


def _takes_number_of_classes(config) -> bool:
    """Whether the number of classes is an argument of the model, which neither the recipe nor the model's name sets."""
    model_class, of_name = MODELS[config.model]
    known = arguments_of(model_class)
    return "num_classes" in known and "num_classes" not in {**of_name, **config.model_arguments}


def check_size(model: Any, takes: Sequence[int], dataset: str, given: Sequence[int]):
    """Refuses images of another size, (H, W, C), than a model takes."""
    if tuple(takes) != tuple(given):
        takes_size, given_size = ("×".join(map(str, shape)) for shape in (takes, given))
        raise ValueError(f"{model} takes images of {takes_size}, those of {dataset} are {given_size}")


def _check_classes(config, net, classes) -> int:
    has = output_shape(net)
    if not head_places(net) and len(has) == 1:
        raise ValueError(
            f"{config.model!r} has no classifier: it gives {has[0]} features, and {config.dataset} has {classes} "
            f"classes. Choose a classifier, with model_arguments.num_classes={classes}"
        )
    if has != (classes,):
        gives = f"has {has[0]} classes" if len(has) == 1 else f"gives shape {has} for an image and not a class"
        raise ValueError(
            f"{config.model!r} {gives}, {config.dataset} has {classes} classes: set "
            f"model_arguments.num_classes={classes}"
        )
    return classes
