"""The training step: a pure function from state to state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from repmlp_jax.training import average, loss_scale
from repmlp_jax.training.average import Average
from repmlp_jax.training.loss_scale import LossScale
from repmlp_jax.training.sharding import gathered, platform_of


class Totals(NamedTuple):
    """Sums over the examples seen since the epoch began.

    Attributes:
        loss: of the examples' losses.
        correct: number of correct examples, int32; float32 in a task that counts shares of images.
        examples: number of examples.
    """

    loss: Float[Array, ""]
    correct: Num[Array, ""]
    examples: Int[Array, ""]


class TrainState(NamedTuple):
    """The state that training changes and that a checkpoint holds.

    Attributes:
        step: number of completed training steps.
        parameters: of the model.
        statistics: running statistics and other variables that are not trained.
        optimizer: the optimizer's state.
        totals: of the epoch so far.
        failed_step: the first step whose loss, parameters or statistics were not finite, or -1.
        damaged: number of examples so far that could not be read and were replaced by others.
        average: of parameters and statistics; None: the run keeps none.
        loss_scale: of float16; None: the loss is not scaled.
    """

    step: Int[Array, ""]
    parameters: nnx.State
    statistics: nnx.State
    optimizer: optax.OptState
    totals: Totals
    failed_step: Int[Array, ""]
    damaged: Int[Array, ""]
    average: Average | None = None
    loss_scale: LossScale | None = None


RETYPED = ("totals/correct",)
"""Arrays of a state that checkpoints of earlier versions hold in another dtype."""


def init_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    correct_dtype: DTypeLike = jnp.int32,
    *,
    averaged: bool = False,
    trains: Any = nnx.Param,
    scaled_by: float = 0.0,
) -> TrainState:
    """The state before the first step.

    Args:
        model: the initial model.
        optimizer: an Optax optimizer.
        correct_dtype: dtype of the task's count of correct examples.
        averaged: whether the state holds an average of the weights.
        trains: NNX filter of the parameters that train; the optimizer and the average have no others.
        scaled_by: factor of the loss at the start; 0: the loss is not scaled.
    """
    parameters, statistics = nnx.state(model, nnx.Param, ...)
    trained, _ = nnx.split_state(parameters, trains, ...)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        statistics=statistics,
        optimizer=optimizer.init(trained),
        totals=Totals(jnp.zeros((), jnp.float32), jnp.zeros((), correct_dtype), jnp.zeros((), jnp.int32)),
        failed_step=jnp.full((), -1, jnp.int32),
        damaged=jnp.zeros((), jnp.int32),
        average=average.start(trained, statistics) if averaged else None,
        loss_scale=loss_scale.start(scaled_by) if scaled_by else None,
    )


class StepMetrics(NamedTuple):
    """Metrics of the steps so far, on the host.

    Attributes:
        step: number of completed training steps.
        loss: mean of the epoch so far, in nats.
        accuracy: of the epoch so far, a share of 1.
        failed_step: the first step whose loss, parameters or statistics were not finite, or -1.
        damaged: number of replaced examples so far.
    """

    step: int
    loss: float
    accuracy: float
    failed_step: int
    damaged: int


def fetch_metrics(state: TrainState) -> tuple[TrainState, StepMetrics]:
    """Waits for the state and copies its totals to the host in one transfer; also returns the state itself."""
    step, totals, failed_step, damaged = jax.device_get((state.step, state.totals, state.failed_step, state.damaged))
    examples = int(totals.examples)
    return state, StepMetrics(
        int(step), float(totals.loss) / examples, float(totals.correct) / examples, int(failed_step), int(damaged)
    )


def make_step(
    graphdef, optimizer, loss, *, batch_size, steps_per_epoch, accumulate=1, ema_decay=0.0, trains=nnx.Param, mesh
):
    """Makes a training step, `(state, batch, key) → state`, which the feed compiles.

    Args:
        graphdef: of the model.
        optimizer: an Optax optimizer.
        loss: `(model, batch, key) → (mean loss of the batch, number of correct examples)`. The optional entry "skipped"
            of a batch is not passed to it, but counted as damaged examples.
        batch_size: examples of a batch, over all devices.
        steps_per_epoch: number of steps after which the totals start from zero again.
        accumulate: parts of a batch, computed one after another to save memory; a norm sees one part at a time.
        ema_decay: of the average of the weights; 0: the state holds none.
        trains: NNX filter of the parameters that train; of the others no gradient is computed.
        mesh: the devices.
    """
    is_split = mesh.shape.get("fsdp", 1) > 1

    def loss_of(trained, frozen, statistics, batch, key, factor):
        if is_split:
            trained, frozen = (gathered(part, mesh) for part in (trained, frozen))
        model = nnx.merge(graphdef, trained, frozen, statistics, copy=True)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # by which norms know the parts of the batch
            value, correct = loss(model, batch, key)
        _, statistics = nnx.state(model, nnx.Param, ...)
        return value if factor is None else value * factor, (statistics, correct)

    gradient_of = jax.value_and_grad(loss_of, has_aux=True)

    def gradient_of_batch(trained, frozen, statistics, batch, key, factor):
        if accumulate == 1:
            return gradient_of(trained, frozen, statistics, batch, key, factor)

        def add_part(total, part_and_key):
            statistics, sums = total
            (loss, (statistics, correct)), gradients = gradient_of(trained, frozen, statistics, *part_and_key, factor)
            return (statistics, jax.tree.map(jnp.add, sums, gradients)), (loss, correct)

        # Every `accumulate`-th example forms a part, so that every device keeps its own examples.
        parts = jax.tree.map(lambda array: jnp.moveaxis(array.reshape(-1, accumulate, *array.shape[1:]), 1, 0), batch)
        total = statistics, jax.tree.map(jnp.zeros_like, trained)
        keys = jax.random.split(key, accumulate)
        (statistics, gradients), (losses, corrects) = lax.scan(add_part, total, (parts, keys), unroll=unroll)
        gradients = jax.tree.map(lambda array: array / accumulate, gradients)
        return (losses.mean(), (statistics, corrects.sum(dtype=corrects.dtype))), gradients

    # XLA's CPU backend runs convolutions in a loop on one core, 20 times slower.
    unroll = accumulate if platform_of(mesh) == "cpu" else 1

    def one_step(state, batch, key):
        skipped = batch.get("skipped", jnp.zeros((), jnp.int32)).sum(dtype=jnp.int32)
        batch = {name: array for name, array in batch.items() if name != "skipped"}
        trained, frozen = nnx.split_state(state.parameters, trains, ...)
        scale = state.loss_scale
        (loss, (statistics, correct)), gradients = gradient_of_batch(
            trained,
            frozen,
            state.statistics,
            batch,
            jax.random.fold_in(key, state.step),
            None if scale is None else scale.factor,
        )
        if scale is not None:
            loss, gradients = jax.tree.map(lambda array: array / scale.factor, (loss, gradients))
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, trained)
        is_first = state.step % steps_per_epoch == 0
        seen = jax.tree.map(lambda total: jnp.where(is_first, jnp.zeros_like(total), total), state.totals)
        moved = optax.apply_updates(trained, updates)
        followed = state.average
        if followed is not None:
            followed = average.follow(followed, Average(moved, statistics), state.step, ema_decay)
        if scale is not None:  # a step whose gradients overflow is skipped, with a smaller scale for the next
            finite = _are_finite(gradients)
            loss = jnp.where(finite | (scale.factor > 1), loss, jnp.nan)  # with a scale of 1 no smaller one would help
            before = trained, state.optimizer, state.statistics, state.average
            after = moved, optimizer_state, statistics, followed
            moved, optimizer_state, statistics, followed = jax.tree.map(
                lambda new, old: jnp.where(finite, new, old), after, before
            )
            scale = loss_scale.adjusted(scale, finite)
        # The loss alone does not tell: XLA's CPU compiler returns 0 for `relu(nan)` within some programs.
        failed = (state.failed_step < 0) & ~_are_finite((loss, moved, statistics))
        return TrainState(
            step=state.step + 1,
            parameters=nnx.merge_state(moved, frozen),
            statistics=statistics,
            optimizer=optimizer_state,
            totals=Totals(seen.loss + loss * batch_size, seen.correct + correct, seen.examples + batch_size),
            failed_step=jnp.where(failed, state.step + 1, state.failed_step),
            damaged=state.damaged + skipped,
            average=followed,
            loss_scale=scale,
        )

    return one_step


def _are_finite(tree):
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    # Zero times what is not finite is nan. A TPU would store a truth value for each number before it joins them.
    return jnp.stack([(leaf * 0).sum() == 0 for leaf in leaves]).all()
