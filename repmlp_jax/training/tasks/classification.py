"""Classification: of datasets that fit on the devices (CIFAR-10, digits), and of ImageNet and its like, streamed."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.data import augment, load_dataset
from repmlp_jax.models import create_model
from repmlp_jax.training.evaluation import Evaluator, resident_batches
from repmlp_jax.training.feed import ResidentFeed
from repmlp_jax.training.losses import cross_entropy


class Classification:
    """One label an image; the loss is the softmax's cross-entropy.

    Args:
        config: as `default_config()`.
        mesh: the devices.
        order_key: seed of the order of the examples.
    """

    scores = ("loss", "accuracy")
    best = "accuracy"

    def __init__(self, config, mesh, order_key):
        self._config = config
        dataset = load_dataset(config.dataset, config.data_dir or None)
        self._mean, self._std = dataset.mean, dataset.std
        self.preprocessing = dict(mean=dataset.mean, std=dataset.std, class_names=dataset.class_names)
        train, test = (dict(zip(("image", "label"), split, strict=True)) for split in (dataset.train, dataset.test))
        self.feed = ResidentFeed(train, config.batch_size, order_key, mesh)
        batches = resident_batches(test, config.eval_batch_size, mesh)
        self.evaluator = Evaluator(batches, self._predict, judge, summarise, mesh)

    def make_model(self, rngs: nnx.Rngs) -> nnx.Module:
        """What is trained."""
        return create_model(self._config.model, rngs=rngs, **self._config.model_arguments)

    def result(self, model: nnx.Module) -> nnx.Module:
        """What of it is saved, fused and evaluated."""
        return model

    def draw(self, workdir, model):
        """Pictures of what the model does; of a classifier there are none besides its curves."""

    def loss(self, model, batch, key):
        """The mean loss of a batch and how many of its images are classified right."""
        images = self._augmented(batch["image"], key)
        logits = model(augment.normalise(images, self._mean, self._std))
        losses = cross_entropy(logits, batch["label"], self._config.label_smoothing)
        return losses.mean(), _are_right(logits, batch["label"]).sum(dtype=jnp.float32)

    def _augmented(self, images, key):
        crop_key, flip_key = jax.random.split(key)
        if self._config.crop_padding:
            images = augment.pad_and_crop(crop_key, images, self._config.crop_padding)
        return augment.flip(flip_key, images) if self._config.flip else images

    def _predict(self, model, batch):
        return model(augment.normalise(batch["image"], self._mean, self._std))


def judge(logits, batch):
    """The sum of the losses, how many are right, and how many there are."""
    losses = jnp.where(batch["mask"], cross_entropy(logits, batch["label"]), 0.0)
    right = _are_right(logits, batch["label"]) & batch["mask"]
    return losses.sum(), right.sum(dtype=jnp.int32), batch["mask"].sum(dtype=jnp.int32)


def summarise(judged: list) -> dict[str, float]:
    """The mean loss in nats and the accuracy, a share of 1."""
    losses, right, counts = (np.sum(values, dtype=np.float64) for values in zip(*judged, strict=True))
    return dict(loss=float(losses / counts), accuracy=float(right / counts))


def _are_right(logits, labels):
    return jax.lax.argmax(logits, 1, jnp.int32) == labels
