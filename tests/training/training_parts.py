"""The parts of a training run, as `train_and_evaluate` puts them together."""

from typing import NamedTuple

import jax
from cases import randomised
from flax import nnx
from jax.sharding import AxisType

from repmlp_jax.data import load_dataset
from repmlp_jax.models import create_model
from repmlp_jax.training.sharding import put_on_every_device, replicated
from repmlp_jax.training.step import Batches, TrainState, init_state, make_optimizer, make_train_steps


def mesh_of(devices: int):
    """A mesh over some of the devices."""
    return jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices], axis_types=(AxisType.Auto,))


class Prepared(NamedTuple):
    """What a call of the training step takes, and what it gives."""

    train_steps: object
    state: TrainState
    data: Batches
    order: jax.Array
    key: jax.Array

    def train(self, *counts: int) -> TrainState:
        """The state after the steps, in a call for each count."""
        state = jax.tree.map(lambda array: array.copy(), self.state)
        for count in counts:
            state = self.train_steps(state, self.data, self.order, self.key, count)
        return state


def prepare(config, mesh) -> Prepared:
    """Everything up to the first training step, as `train_and_evaluate` does it, with random weights."""
    dataset = load_dataset(config.dataset)

    def make_model():
        return create_model(config.model, rngs=nnx.Rngs(config.seed), **config.model_arguments)

    images, labels = dataset.train
    optimizer, _ = make_optimizer(config, len(labels) // config.batch_size)
    model = randomised(nnx.eval_shape(make_model))
    everywhere = replicated(mesh)
    return Prepared(
        make_train_steps(nnx.graphdef(model), optimizer, config, dataset.mean, dataset.std, mesh),
        jax.device_put(init_state(model, optimizer), everywhere),
        Batches(put_on_every_device(images, mesh), put_on_every_device(labels, mesh)),
        jax.device_put(jax.random.permutation(jax.random.key(1), len(labels)), everywhere),
        jax.device_put(jax.random.key(2), everywhere),
    )
