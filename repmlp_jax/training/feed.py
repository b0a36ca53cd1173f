"""Feeds of the training step: a dataset on the devices, or a stream of batches from the host."""

import functools
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax import lax

from repmlp_jax.training.sharding import (
    platform_of,
    put_batch,
    put_everywhere,
    put_on_every_device,
    replicated,
    split_batch,
)


class ResidentFeed:
    """Feeds a dataset that fits on the devices; after the first step no image is copied from the host.

    The seed and the epoch determine the order, the order and the step determine the batch.

    Args:
        dataset: name → array (examples, …), which every process has.
        batch_size: examples of a batch, of all devices together.
        order_key: seed of the order of the examples.
        mesh: the devices.
    """

    def __init__(self, dataset: dict[str, np.ndarray], batch_size: int, order_key, mesh):
        self.dataset = {name: put_on_every_device(array, mesh) for name, array in dataset.items()}
        self.examples = len(next(iter(dataset.values())))
        self._batch_size = batch_size
        self._mesh = mesh
        self._epoch, self._order = None, None

        def draw_order(epoch):
            return jax.random.permutation(jax.random.fold_in(order_key, epoch), self.examples)

        self._draw_order = jax.jit(draw_order, out_shardings=replicated(mesh))

    def compile(self, one_step: Callable, key, shardings) -> Callable:
        """Compiles `(state, step, count) → state`, which runs `count` steps within an epoch, starting at `step`.

        The result does not depend on how steps are split into calls, and another `count` does not recompile.

        Args:
            one_step: of `step.make_step`.
            key: seed of the randomness in a step.
            shardings: of the state's arrays.
        """
        train_steps = self.make_train_steps(one_step, shardings)
        key = put_everywhere(key, self._mesh)

        def run(state, step, count):
            epoch = step // (self.examples // self._batch_size)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = self._draw_order(put_on_every_device(np.asarray(epoch, np.uint32), self._mesh))
            if platform_of(self._mesh) != "cpu":  # where the loop runs on the devices
                count = put_on_every_device(np.asarray(count, np.int32), self._mesh)
            return train_steps(state, self.dataset, self._order, key, count)

        return run

    def make_train_steps(self, one_step: Callable, shardings) -> Callable:
        """Compiles `(state, dataset, order, key, count) → state`."""

        def step_on(state, dataset, order, key):
            position = state.step % (len(order) // self._batch_size)
            chosen = lax.dynamic_slice_in_dim(order, position * self._batch_size, self._batch_size)
            batch = {name: array[chosen] for name, array in dataset.items()}
            return one_step(state, lax.with_sharding_constraint(batch, split_batch(self._mesh)), key)

        # XLA's CPU backend runs convolutions in a loop on one core, 20 times slower.
        repeat = step_by_step if platform_of(self._mesh) == "cpu" else in_a_loop
        return repeat(step_on, shardings)


class StreamedFeed:
    """Feeds batches that the host reads and decodes while the devices compute.

    The training step is the position in the stream: a checkpoint needs nothing else to resume.

    Args:
        open_stream: step → this process's parts of the batches, starting at that step.
        examples: number of examples in the dataset.
        mesh: the devices.

    Attributes:
        asking_seconds: the time in which the last call asked for batches.
        started: when it had started its last step, by `time.perf_counter`.
    """

    asking_seconds = started = 0.0

    def __init__(self, open_stream: Callable[[int], Iterator[dict[str, np.ndarray]]], examples: int, mesh):
        self._open_stream = open_stream
        self.examples = examples
        self._mesh = mesh
        self._stream: Iterator[dict[str, np.ndarray]] = iter(())
        self._next_step = None

    def compile(self, one_step: Callable, key, shardings) -> Callable:
        """Compiles `(state, step, count) → state`; see `ResidentFeed.compile`."""
        step_alone = jax.jit(one_step, donate_argnums=0, out_shardings=shardings)
        key = put_everywhere(key, self._mesh)

        def run(state, step, count):
            if step != self._next_step:
                self._stream = self._open_stream(step)
            self.asking_seconds = 0.0
            for _ in range(count):
                asked = time.perf_counter()
                batch = next(self._stream)
                self.asking_seconds += time.perf_counter() - asked
                state = step_alone(state, put_batch(batch, self._mesh), key)
            self.started = time.perf_counter()
            self._next_step = step + count
            return state

        return run


def step_by_step(step: Callable, shardings) -> Callable:
    """Compiles `(state, dataset, order, key, count) → state`, which calls the step `count` times from the host."""
    one_step = jax.jit(step, donate_argnums=0, out_shardings=shardings)

    def train_steps(state, dataset, order, key, count):
        for _ in range(count):
            state = one_step(state, dataset, order, key)
        return state

    return train_steps


def in_a_loop(step: Callable, shardings) -> Callable:
    """Compiles `(state, dataset, order, key, count) → state`, whose loop runs on the devices."""

    @functools.partial(jax.jit, donate_argnums=0, out_shardings=shardings)
    def train_steps(state, dataset, order, key, count):
        return lax.fori_loop(0, count, lambda _, state: step(state, dataset, order, key), state)

    return train_steps
