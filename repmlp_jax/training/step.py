"""The training step: a pure function from state to state."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from repmlp_jax.training.sharding import platform_of, replicated


class Totals(NamedTuple):
    """Sums over the examples seen since the epoch began.

    Attributes:
        loss: of the examples' losses.
        correct: examples that the model gets right, int32; float32 where a task counts shares of pictures.
        examples: their number.
    """

    loss: Float[Array, ""]
    correct: Num[Array, ""]
    examples: Int[Array, ""]


class TrainState(NamedTuple):
    """All that training changes, and all that a checkpoint holds.

    Attributes:
        step: training steps done.
        parameters: of the model.
        statistics: running statistics and all else that is not trained.
        optimizer: the optimizer's state.
        totals: of the epoch so far.
        failed_step: the first step whose loss was not finite, or -1.
        damaged: examples so far that could not be read and that others took the place of.
    """

    step: Int[Array, ""]
    parameters: nnx.State
    statistics: nnx.State
    optimizer: optax.OptState
    totals: Totals
    failed_step: Int[Array, ""]
    damaged: Int[Array, ""]


RETYPED = ("totals/correct",)
"""The arrays of a state that checkpoints of earlier versions hold in another dtype."""


def init_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, correct_dtype: DTypeLike = jnp.int32
) -> TrainState:
    """The state before the first step; `correct_dtype` is the dtype of what the task's loss counts as right."""
    parameters, statistics = nnx.state(model, nnx.Param, ...)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        statistics=statistics,
        optimizer=optimizer.init(parameters),
        totals=Totals(jnp.zeros((), jnp.float32), jnp.zeros((), correct_dtype), jnp.zeros((), jnp.int32)),
        failed_step=jnp.full((), -1, jnp.int32),
        damaged=jnp.zeros((), jnp.int32),
    )


class StepMetrics(NamedTuple):
    """What the host knows of the steps so far.

    Attributes:
        step: training steps done.
        loss: mean of the epoch so far.
        accuracy: of the epoch so far, a share of 1.
        failed_step: the first step whose loss was not finite, or -1.
        damaged: examples so far that others took the place of.
    """

    step: int
    loss: float
    accuracy: float
    failed_step: int
    damaged: int


def fetch_metrics(state: TrainState) -> tuple[TrainState, StepMetrics]:
    """Waits for the state and brings its totals to the host, in one transfer."""
    step, totals, failed_step, damaged = jax.device_get((state.step, state.totals, state.failed_step, state.damaged))
    examples = int(totals.examples)
    return state, StepMetrics(
        int(step), float(totals.loss) / examples, float(totals.correct) / examples, int(failed_step), int(damaged)
    )


def make_step(graphdef, optimizer, loss, *, batch_size, steps_per_epoch, accumulate=1, mesh):
    """A training step, `(state, batch, key) → state`, to be compiled by who feeds it.

    Args:
        graphdef: of the model.
        optimizer: Optax's.
        loss: `(model, batch, key) → (mean loss of the batch, how many of its examples are right)`. A batch's entry
            "skipped", if there is one, is not passed on but counted as damaged examples.
        batch_size: examples of a batch, of all devices together.
        steps_per_epoch: after which the totals start from zero again.
        accumulate: parts that a batch is done in, one after another, to need less memory; norms see each by itself.
        mesh: the devices.
    """
    everywhere = replicated(mesh)
    is_split = mesh.shape.get("fsdp", 1) > 1

    def loss_of(parameters, statistics, batch, key):
        if is_split:  # Gathered before use, so that their gradient is summed and scattered on the way back.
            parameters = lax.with_sharding_constraint(parameters, everywhere)
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        value, correct = loss(model, batch, key)
        _, statistics = nnx.state(model, nnx.Param, ...)
        return value, (statistics, correct)

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def gradient_of_batch(parameters, statistics, batch, key):
        if accumulate == 1:
            return gradient_of(parameters, statistics, batch, key)

        def add_part(total, part_and_key):
            statistics, sums = total
            (loss, (statistics, correct)), gradients = gradient_of(parameters, statistics, *part_and_key)
            return (statistics, jax.tree.map(jnp.add, sums, gradients)), (loss, correct)

        # Every device keeps its own examples: a part takes each `accumulate`-th.
        parts = jax.tree.map(lambda array: jnp.moveaxis(array.reshape(-1, accumulate, *array.shape[1:]), 1, 0), batch)
        total = statistics, jax.tree.map(jnp.zeros_like, parameters)
        keys = jax.random.split(key, accumulate)
        (statistics, gradients), (losses, corrects) = lax.scan(add_part, total, (parts, keys), unroll=unroll)
        gradients = jax.tree.map(lambda array: array / accumulate, gradients)
        return (losses.mean(), (statistics, corrects.sum(dtype=corrects.dtype))), gradients

    # XLA's CPU backend runs convolutions within a loop on one core and 20 times slower.
    unroll = accumulate if platform_of(mesh) == "cpu" else 1

    def one_step(state, batch, key):
        skipped = batch.get("skipped", jnp.zeros((), jnp.int32)).sum(dtype=jnp.int32)
        batch = {name: array for name, array in batch.items() if name != "skipped"}
        (loss, (statistics, correct)), gradients = gradient_of_batch(
            state.parameters, state.statistics, batch, jax.random.fold_in(key, state.step)
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        is_first = state.step % steps_per_epoch == 0
        seen = jax.tree.map(lambda total: jnp.where(is_first, jnp.zeros_like(total), total), state.totals)
        failed = (state.failed_step < 0) & ~jnp.isfinite(loss)
        return TrainState(
            step=state.step + 1,
            parameters=optax.apply_updates(state.parameters, updates),
            statistics=statistics,
            optimizer=optimizer_state,
            totals=Totals(seen.loss + loss * batch_size, seen.correct + correct, seen.examples + batch_size),
            failed_step=jnp.where(failed, state.step + 1, state.failed_step),
            damaged=state.damaged + skipped,
        )

    return one_step
