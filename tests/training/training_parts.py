"""The parts of a training run, as `train_and_evaluate` puts them together."""

import contextlib
from typing import NamedTuple

import jax
import pytest
from cases import randomised
from flax import nnx

from repmlp_jax.tasks import task_class
from repmlp_jax.training import loop
from repmlp_jax.training.feed import ResidentFeed
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.parts import parts_of
from repmlp_jax.training.sharding import make_mesh, put_state, replicated, state_shardings
from repmlp_jax.training.step import TrainState, init_state, make_step


class KilledError(Exception):
    """Ends a run without a chance to save."""


@contextlib.contextmanager
def killed_at(step: int):
    """Kills the run that is started within, at a look after that step."""
    fetch_metrics = loop.fetch_metrics

    def fetch(state):
        state, seen = fetch_metrics(state)
        if seen.step == step:
            raise KilledError
        return state, seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "fetch_metrics", fetch)
        with pytest.raises(KilledError):
            yield


def mesh_of(devices: int, fsdp: int = 1):
    """A mesh over some of the devices."""
    return make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])


class Prepared(NamedTuple):
    """What a call of the training step takes, and what it gives."""

    train_steps: object
    state: TrainState
    data: dict
    order: jax.Array
    key: jax.Array

    def train(self, *counts: int) -> TrainState:
        """The state after the steps, in a call for each count, for which nothing may move from device to device."""
        state = jax.tree.map(lambda array: array.copy(), self.state)
        with jax.transfer_guard_device_to_device("disallow"):
            for count in counts:
                state = self.train_steps(state, self.data, self.order, self.key, count)
        return state


def prepare(config, mesh) -> Prepared:
    """Everything up to the first training step, as `train_and_evaluate` does it, with random weights."""
    task = task_class(config.task)(config, mesh, jax.random.key(1))
    feed: ResidentFeed = task.feed
    steps_per_epoch = feed.examples // config.batch_size
    parts = parts_of(config, task.make_model)
    optimizer, _ = make_optimizer(config, steps_per_epoch, parts.factors)
    model = randomised(nnx.eval_shape(lambda: task.make_model(nnx.Rngs(config.seed))))
    kept = dict(averaged=config.ema_decay > 0, trains=parts.filter, scaled_by=config.loss_scale)
    state = init_state(model, optimizer, **kept)
    shardings = state_shardings(state, mesh)
    step = make_step(
        nnx.graphdef(parts.with_frozen_norms(model)),
        optimizer,
        task.loss,
        batch_size=config.batch_size,
        steps_per_epoch=steps_per_epoch,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        trains=parts.filter,
        mesh=mesh,
    )
    everywhere = replicated(mesh)
    return Prepared(
        feed.make_train_steps(step, shardings),
        put_state(state, shardings),
        feed.dataset,
        jax.device_put(jax.random.permutation(jax.random.key(1), feed.examples), everywhere),
        jax.device_put(jax.random.key(2), everywhere),
    )
