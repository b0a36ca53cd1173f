"""Street scenes: a class for every pixel, trained on random crops, evaluated on whole pictures."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils

from repmlp_jax.data import augment
from repmlp_jax.data.stream import make_stream
from repmlp_jax.models.output_shape import output_shape
from repmlp_jax.models.randomness import abstract
from repmlp_jax.progress import progress_bar
from repmlp_jax.tasks.segmentation import metrics
from repmlp_jax.tasks.segmentation.data import load_street_scenes, street_scenes
from repmlp_jax.tasks.segmentation.examples import evaluation_example, training_example
from repmlp_jax.tasks.segmentation.overlay import comparison
from repmlp_jax.training.evaluation import Comparison, images_per_second, in_evaluation, rounds_products
from repmlp_jax.training.feed import StreamedFeed
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.sharding import make_mesh, on_this_process, put_everywhere, rounded_up, split_batch
from repmlp_jax.training.task import ConfiguredTask, stream_part

PICTURES_DRAWN = 4


class Segmentation(ConfiguredTask):
    """Cross-entropy of the pixels that count, for both heads; the score is the mean intersection over union.

    Args:
        config: as `default_config()`.
        mesh: the devices.
        order_key: seed of the order of the examples and of their augmentation.

    Raises:
        ValueError: if the model is not a PSPNet, its number of classes is not the dataset's, or a split is missing.
    """

    scores = ("mean_iou", "pixel_accuracy")
    best = "mean_iou"
    correct_dtype = jnp.float32

    def __init__(self, config, mesh, order_key):
        self._config = config
        self._scenes = street_scenes(config.dataset)
        net: Any = abstract(self.make_model)
        _check_classes(config, net, self._scenes)
        splits = load_street_scenes(config.dataset, config.data_dir or None)
        for split in ("train", config.eval_split):
            if split not in splits:
                raise ValueError(f"{config.dataset} has no split {split!r}; it has {', '.join(sorted(splits))}")
        transform = functools.partial(
            training_example, dataset=self._scenes, crop_size=net.input_shape[:2], scale=tuple(config.crop_scale)
        )
        seed = int(jax.random.bits(order_key, dtype=jnp.uint32))
        part = stream_part(config)

        def open_stream(step):
            return make_stream(splits["train"], transform, batch_size=config.batch_size, seed=seed, start=step, **part)

        self.feed = StreamedFeed(open_stream, len(splits["train"]), mesh)
        self.preprocessing = dict(mean=self._scenes.mean, std=self._scenes.std, class_names=self._scenes.class_names)
        self.evaluator = SceneEvaluator(
            splits[config.eval_split], self._scenes, net.input_shape[:2], config.eval_batch_size
        )

    def baselines(self) -> dict[str, dict[str, float]]:
        """The scores of the most frequent class at every pixel."""
        return {"majority class": self.evaluator.of_the_majority_class()}

    def draw(self, workdir, model):
        """Draws some pictures with their true and predicted classes."""
        for number, (image, label, predicted) in enumerate(self.evaluator.segmented(model, PICTURES_DRAWN)):
            figure = comparison(image, label, predicted, self._scenes.palette, self._scenes.class_names)
            figure.savefig(workdir / f"scene_{number}.png", dpi=120)

    def loss(self, model, batch, key):
        """The mean loss of the pixels that count, and the share of correct ones times the number of images."""
        counts = batch["label"] != metrics.IGNORED
        labels = jnp.where(counts, batch["label"], 0).astype(jnp.int32)
        number = jnp.maximum(counts.sum(dtype=jnp.int32), 1).astype(jnp.float32)

        def mean_loss(logits):
            targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
            targets = optax.smooth_labels(targets, self._config.label_smoothing)
            return jnp.where(counts, cross_entropy(logits, targets), 0).sum() / number

        logits, auxiliary = model.with_auxiliary(augment.normalise(batch["image"], self._scenes.mean, self._scenes.std))
        right = (jax.lax.argmax(logits, 3, jnp.int32) == labels) & counts
        share = right.sum(dtype=jnp.int32).astype(jnp.float32) / number
        return mean_loss(logits) + self._config.auxiliary_weight * mean_loss(auxiliary), share * len(labels)


class SceneEvaluator:
    """Evaluates models on whole pictures by windows of the model's size; each process takes a part of the pictures.

    Args:
        records: of the split; undecoded.
        scenes: the dataset.
        window: (height, width) that the model takes.
        batch_size: windows in a batch, rounded up to a multiple of this process's devices.
    """

    def __init__(self, records, scenes, window, batch_size):
        self._records = records
        self._scenes = scenes
        self._window = window
        # Pictures differ in size, so each process runs its own pictures on its own devices, with a copy of the model.
        self._mesh = make_mesh(devices=jax.local_devices())
        self._batch_size = rounded_up(batch_size, self._mesh)

        @functools.partial(jax.jit, in_shardings=(None, split_batch(self._mesh)))
        def predict(model, images):
            return in_evaluation(model)(augment.normalise(images, scenes.mean, scenes.std))

        self._predict = predict
        self._confusion = jax.jit(functools.partial(metrics.confusion_matrix, num_classes=len(scenes.class_names)))

    def evaluate(self, model: nnx.Module) -> dict[str, float]:
        """The scores mean_iou, pixel_accuracy, and iou_… of each class, as shares of 1."""
        model = self._placed(model)
        return self._summarise(
            [self._confusion(label, self._segment(model, image)[0]) for image, label in self._pictures()]
        )

    def compare(self, trained: nnx.Module, fused: nnx.Module, runs: int = 5) -> Comparison:
        """Compares the fused model with the trained one; differences are those of class probabilities."""
        trained, fused = self._placed(trained), self._placed(fused)
        of_trained, of_fused = [], []
        extremes = [np.zeros(3)]  # With fewer pictures than processes, some processes have none.
        for image, label in self._pictures():
            (one, probabilities), (other, fused_probabilities) = (self._segment(net, image) for net in (trained, fused))
            of_trained.append(self._confusion(label, one))
            of_fused.append(self._confusion(label, other))
            as_run = np.abs(probabilities - fused_probabilities).max()
            if rounds_products(self._mesh):
                with jax.default_matmul_precision("highest"):
                    probabilities, fused_probabilities = (self._segment(net, image)[1] for net in (trained, fused))
            extremes.append(np.array([np.abs(probabilities - fused_probabilities).max(), probabilities.max(), as_run]))
        extreme = np.max(extremes, 0)
        if jax.process_count() > 1:
            extreme = multihost_utils.process_allgather(extreme).max(0)
        difference, output, as_run = extreme.tolist()
        return Comparison(
            scores=(self._summarise(of_trained), self._summarise(of_fused)),
            largest_difference=difference,
            largest_output=output,
            difference_as_run=as_run,
            images_per_second=(self._windows_per_second(trained, runs), self._windows_per_second(fused, runs)),
        )

    def of_the_majority_class(self) -> dict[str, float]:
        """The scores of a model that predicts the most frequent class everywhere."""
        counts = self._total([self._confusion(label, np.zeros_like(label)) for _, label in self._pictures()]).sum(1)
        return _scores(np.outer(counts, np.arange(len(counts)) == counts.argmax()), self._scenes)

    def segmented(self, model: nnx.Module, number: int):
        """Yields the first pictures, each with its true and predicted classes."""
        model = self._placed(model)
        for index in range(min(number, len(self._records))):
            example = evaluation_example(self._records[index], dataset=self._scenes)
            yield example["image"], example["label"], self._segment(model, example["image"])[0]

    def _placed(self, model):
        return put_everywhere(on_this_process(model), self._mesh)

    def _pictures(self):
        indices = range(jax.process_index(), len(self._records), jax.process_count())
        hidden = jax.process_index() > 0
        for index in progress_bar(indices, "evaluating", unit=" pictures", delay=2, leave=False, disable=hidden):
            example = evaluation_example(self._records[index], dataset=self._scenes)
            yield example["image"], example["label"]

    def _segment(self, model, image):
        probabilities = metrics.sliding_window(
            lambda windows: self._predict(model, windows),
            image,
            self._window,
            batch_size=self._batch_size,
            fill=[round(255 * value) for value in self._scenes.mean],
        )
        return probabilities.argmax(-1).astype(np.uint8), probabilities

    def _summarise(self, matrices):
        return _scores(self._total(matrices), self._scenes)

    def _total(self, matrices):
        classes = len(self._scenes.class_names)
        # With fewer pictures than processes, some processes have none.
        matrix = metrics.total_confusion(matrices) if matrices else np.zeros((classes, classes), np.int64)
        if jax.process_count() > 1:
            # JAX has no int64 here, so each count is sent as two int32.
            matrix = multihost_utils.process_allgather(matrix.view(np.int32)).view(np.int64).sum(0)
        return matrix

    def _windows_per_second(self, model, runs):
        windows = np.zeros((self._batch_size, *self._window, 3), np.uint8)
        return images_per_second(lambda: self._predict(model, windows), self._batch_size, runs)


def _scores(matrix, scenes) -> dict[str, float]:
    found = metrics.intersection_over_union(matrix)
    each = {f"iou_{name}": float(value) for name, value in zip(scenes.class_names, found.per_class, strict=True)}
    return dict(mean_iou=found.mean, pixel_accuracy=metrics.pixel_accuracy(matrix)) | each


def _check_classes(config, net, scenes):
    if not hasattr(net, "with_auxiliary"):
        raise ValueError(f"task='segmentation' needs a PSPNet, and {config.model!r} is a {type(net).__name__}")
    *_, classes = output_shape(net)
    if classes != len(scenes.class_names):
        raise ValueError(
            f"{config.model!r} has {classes} classes, {config.dataset} {len(scenes.class_names)}: set "
            f"model_arguments.num_classes={len(scenes.class_names)}"
        )
