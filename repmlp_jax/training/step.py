"""The training step and the evaluation step: pure functions from state to state, compiled once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from repmlp_jax.data import augment
from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.sharding import split_batch


class Totals(NamedTuple):
    """Sums over the examples seen since the epoch began.

    Attributes:
        loss: of the examples' losses.
        correct: examples whose largest logit is that of their label.
        examples: their number.
    """

    loss: Float[Array, ""]
    correct: Int[Array, ""]
    examples: Int[Array, ""]

    @classmethod
    def zero(cls) -> "Totals":
        """Nothing seen yet."""
        return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


class TrainState(NamedTuple):
    """All that training changes, and all that a checkpoint holds.

    Attributes:
        step: training steps done.
        parameters: of the model.
        statistics: running statistics and all else that is not trained.
        optimizer: the optimizer's state.
        totals: of the epoch so far.
        failed_step: the first step whose loss was not finite, or -1.
    """

    step: Int[Array, ""]
    parameters: nnx.State
    statistics: nnx.State
    optimizer: optax.OptState
    totals: Totals
    failed_step: Int[Array, ""]


class Batches(NamedTuple):
    """A split of a dataset on the device."""

    images: UInt8[Array, "examples H W C"]
    labels: Int[Array, " examples"]


def make_optimizer(config, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """SGD with momentum as PyTorch has it, decay of kernels only, linear warm-up and a cosine to 0."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=config.epochs * steps_per_epoch,
    )
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=_are_kernels),
        optax.sgd(schedule, momentum=config.momentum),
    ), schedule


def _are_kernels(parameters):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: any(getattr(entry, "key", None) == "kernel" for entry in path), parameters
    )


def init_state(model: nnx.Module, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    _, parameters, statistics = nnx.split(model, nnx.Param, ...)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        parameters=parameters,
        statistics=statistics,
        optimizer=optimizer.init(parameters),
        totals=Totals.zero(),
        failed_step=jnp.full((), -1, jnp.int32),
    )


class Seen(NamedTuple):
    """What is known on the host.

    Attributes:
        step: training steps done.
        loss: mean of the epoch so far.
        accuracy: of the epoch so far, a share of 1.
        failed_step: the first step whose loss was not finite, or -1.
    """

    step: int
    loss: float
    accuracy: float
    failed_step: int


def look(state: TrainState) -> tuple[TrainState, Seen]:
    """Waits for the state and brings its totals to the host, in one transfer."""
    step, totals, failed_step = jax.device_get((state.step, state.totals, state.failed_step))
    examples = int(totals.examples)
    return state, Seen(int(step), float(totals.loss) / examples, int(totals.correct) / examples, int(failed_step))


def make_train_steps(graphdef, optimizer, config, mean, std, mesh):
    """Compiles `(state, data, order, key, count) → state`, which does `count` training steps within an epoch.

    The batch, the augmentation and everything else follow from the state's step, the epoch's order and the key, so
    that it does not matter how the steps are spread over calls. Another `count` is no other program.
    """
    batch_size = config.batch_size

    def loss_of(parameters, statistics, images, labels):
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        logits = model(images)
        losses = cross_entropy(logits, labels, config.label_smoothing)
        correct = jnp.sum(lax.argmax(logits, 1, jnp.int32) == labels, dtype=jnp.int32)
        _, _, statistics = nnx.split(model, nnx.Param, ...)
        return losses.mean(), (statistics, correct)

    def prepare(images, key):
        crop_key, flip_key = jax.random.split(key)
        if config.crop_padding:
            images = augment.pad_and_crop(crop_key, images, config.crop_padding)
        if config.flip:
            images = augment.flip(flip_key, images)
        return augment.normalise(images, mean, std)

    def one_step(state, data, order, key):
        position = state.step % (len(order) // batch_size)
        chosen = lax.dynamic_slice_in_dim(order, position * batch_size, batch_size)
        images, labels = (
            lax.with_sharding_constraint(array[chosen], split_batch(mesh)) for array in (data.images, data.labels)
        )
        images = prepare(images, jax.random.fold_in(key, state.step))
        (loss, (statistics, correct)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.parameters, state.statistics, images, labels
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.parameters)
        seen = jax.tree.map(lambda total: jnp.where(position == 0, jnp.zeros_like(total), total), state.totals)
        failed = (state.failed_step < 0) & ~jnp.isfinite(loss)
        return TrainState(
            step=state.step + 1,
            parameters=optax.apply_updates(state.parameters, updates),
            statistics=statistics,
            optimizer=optimizer_state,
            totals=Totals(seen.loss + loss * batch_size, seen.correct + correct, seen.examples + batch_size),
            failed_step=jnp.where(failed, state.step + 1, state.failed_step),
        )

    if jax.default_backend() == "cpu":
        # XLA's CPU backend runs convolutions within a loop on one core and 20 times slower.
        step = jax.jit(one_step, donate_argnums=0)

        def train_steps(state, data, order, key, count):
            for _ in range(count):
                state = step(state, data, order, key)
            return state

    else:

        @functools.partial(jax.jit, donate_argnums=0)
        def train_steps(state, data, order, key, count):
            return lax.fori_loop(0, count, lambda _, state: one_step(state, data, order, key), state)

    return train_steps
