"""Faces: an embedding is trained as a classifier of people, and scored on people outside the training set."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax import plots
from repmlp_jax.data import augment
from repmlp_jax.models.face import unit_length
from repmlp_jax.models.images import input_shape_of
from repmlp_jax.models.randomness import abstract
from repmlp_jax.tasks.faces.data import centred_pixels, load_faces, load_test_faces, pixels
from repmlp_jax.tasks.faces.margin import FaceClassifier, am_softmax
from repmlp_jax.tasks.faces.stream import stream_faces
from repmlp_jax.tasks.faces.verification import cosine_similarities, roc, verification_report
from repmlp_jax.training.evaluation import Evaluator, ResidentBatches
from repmlp_jax.training.feed import ResidentFeed, StreamedFeed
from repmlp_jax.training.task import ConfiguredTask, check_crop_padding, stream_part

BASELINES = {"pixels": pixels, "pixels less their mean": centred_pixels}


class Faces(ConfiguredTask):
    """AM-Softmax over the people of the training split; verification and identification on those of the test split.

    Args:
        config: as `default_config()`.
        mesh: the devices.
        order_key: seed of the order of the examples.

    Raises:
        ValueError: if the model gives no embeddings, or a person is in both splits.
    """

    scores = ("tar_at_far_1e-1", "tar_at_far_1e-2", "tar_at_far_1e-3", "balanced_accuracy", "rank_1", "auc")
    best = "tar_at_far_1e-2"
    correct_dtype = jnp.int32

    def __init__(self, config, mesh, order_key):
        self._config = config
        net: Any = abstract(super().make_model)
        if not hasattr(net, "embedding_features"):
            raise ValueError(f"task='faces' needs a model that gives embeddings, and {config.model!r} gives none")
        input_shape = input_shape_of(net)
        check_crop_padding(config, input_shape[:2])
        load = self._load_streamed if config.num_people else self._load_resident
        load(config, input_shape, mesh, order_key)
        self.preprocessing = dict(mean=self._mean, std=self._std)
        _check_channels(config, net, self._test_images.shape[-1])
        batches = ResidentBatches(dict(image=self._test_images), config.eval_batch_size, mesh)
        self.evaluator = Evaluator(batches, self._predict, _keep, self._mean_metrics, mesh, per_example=_keep)

    def _load_resident(self, config, input_shape, mesh, order_key):
        faces = load_faces(config.dataset, config.data_dir or None, input_shape[:2])
        self._test_images, self._test_labels = faces.test
        if config.test_dataset:
            self._load_test(config, input_shape)
        self._mean, self._std = faces.mean, faces.std
        self._num_people = len(faces.people)
        train = dict(zip(("image", "label"), faces.train, strict=True))
        self.feed: ResidentFeed | StreamedFeed = ResidentFeed(train, config.batch_size, order_key, mesh)

    def _load_streamed(self, config, input_shape, mesh, order_key):
        self._load_test(config, input_shape)
        self._num_people = config.num_people
        seen = np.unique(self._test_labels[self._test_labels < config.num_people])
        if len(seen) and not config.test_dataset:
            raise ValueError(
                f"{len(seen)} labels of {config.dataset}'s test split are below num_people={config.num_people}, so of "
                f"people who are trained on: verification needs others; set test_dataset"
            )
        # The images' own mean and deviation are not known without reading all of them.
        self._mean = self._std = (0.5,) * input_shape[-1]
        part = stream_part(config)
        dataset = config.dataset, config.data_dir or None, input_shape[:2], config.num_people
        open_stream, examples = stream_faces(*dataset, batch_size=config.batch_size, **part)
        seed = int(jax.random.bits(order_key, dtype=jnp.uint32))
        self.feed = StreamedFeed(lambda step: open_stream(seed, step), examples, mesh)

    def _load_test(self, config, input_shape):
        self._test_images, self._test_labels = load_test_faces(
            config.test_dataset or config.dataset, config.data_dir or None, input_shape[:2]
        )

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the model and a classifier over the people of the training split."""
        return FaceClassifier(super().make_model(rngs), self._num_people, rngs=rngs)

    def result(self, model: Any) -> nnx.Module:
        """The part of the trained model that is saved, fused and evaluated: the embedding model."""
        return model.net

    def report(self, workdir, comparison):
        """Draws the ROC curves of the fused model's embeddings and of the baselines."""
        embeddings = comparison.of_examples[: len(self._test_labels)]
        same = self._test_labels[:, None] == self._test_labels
        pairs = np.triu_indices(len(same), 1)
        curves = {}
        features = {"embeddings": embeddings} | {name: of(self._test_images) for name, of in BASELINES.items()}
        for name, vectors in features.items():
            curve = roc(cosine_similarities(vectors)[pairs], same[pairs])
            curves[name] = (curve.far, curve.tar)
        plots.roc_curve(curves).savefig(workdir / "roc.png", dpi=120)

    def baselines(self) -> dict[str, dict[str, float]]:
        """The scores of the pixels as embeddings."""
        return {name: self._scores_of(of(self._test_images)) for name, of in BASELINES.items()}

    def loss(self, model, batch, key):
        """The mean loss of a batch and its number of images whose largest cosine is with their own person."""
        padding, flipped = self._config.crop_padding, self._config.flip
        images = augment.crop_and_flip(key, batch["image"], padding=padding, flipped=flipped)
        cosines = model(augment.normalise(images, self._mean, self._std))
        losses = am_softmax(cosines, batch["label"], self._config.margin, self._config.scale)
        right = jax.lax.argmax(cosines, 1, jnp.int32) == batch["label"]
        return losses.mean(), right.sum(dtype=jnp.int32)

    def _predict(self, model, batch):
        # The embeddings of a face and of its mirror image are added, as is customary.
        images = augment.normalise(batch["image"], self._mean, self._std)
        return unit_length(model(images) + model(images[:, :, ::-1]))

    def _mean_metrics(self, measured):
        return self._scores_of(np.concatenate(measured)[: len(self._test_labels)])

    def _scores_of(self, embeddings):
        report = verification_report(embeddings, self._test_labels)
        return {name: report[name] for name in self.scores}


def _keep(embeddings, batch):
    return embeddings


def _check_channels(config, net, channels):
    if channels != net.input_shape[-1]:
        raise ValueError(
            f"{config.model!r} takes images of {net.input_shape[-1]} channels, the test images have {channels}: "
            f"set model_arguments.in_features={channels}"
        )
