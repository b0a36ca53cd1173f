"""Optimizers and learning-rate schedules."""

import collections
from collections.abc import Mapping

import jax
import optax


def make_optimizer(
    config, steps_per_epoch: int, factors: Mapping[tuple, float] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and the learning-rate schedule that a configuration asks for.

    SGD follows PyTorch and adds the decay to the gradient; AdamW decouples it. Only kernels decay, not biases and
    norms.

    Args:
        config: as `default_config()`.
        steps_per_epoch: of the schedule.
        factors: path of a parameter → factor of its learning rate; empty or None: 1 for all.
    """
    schedule = make_schedule(config, steps_per_epoch)
    if config.optimizer == "adamw":
        rule = [optax.adamw(schedule, weight_decay=config.weight_decay, mask=_are_kernels)]
    else:
        rule = [
            optax.add_decayed_weights(config.weight_decay, mask=_are_kernels),
            optax.sgd(schedule, momentum=config.momentum),
        ]
    if config.clip_norm:
        rule.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if factors:
        rule.append(
            optax.stateless(
                lambda updates, _: jax.tree.map_with_path(
                    lambda path, update: update * factors[tuple(entry.key for entry in path if hasattr(entry, "key"))],
                    updates,
                )
            )
        )
    return optax.chain(*rule), schedule


def make_schedule(config, steps_per_epoch: int) -> optax.Schedule:
    """A linear warm-up, then `config.schedule`: "cosine", "poly" or "steps"."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    left = max(1, config.epochs * steps_per_epoch - warmup)
    peak = config.learning_rate

    def drops():
        """Step → factor; in short trainings several drops may fall on one step."""
        steps = collections.Counter(round(share * (left + warmup)) - warmup for share in config.drop_at)
        return {step: 0.1**number for step, number in steps.items()}

    schedule = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, left),
        "poly": lambda: optax.polynomial_schedule(peak, 0.0, config.poly_power, left),
        "steps": lambda: optax.piecewise_constant_schedule(peak, drops()),
    }[config.schedule]()
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])

    def with_promotion(count):
        # Optax mixes integers and floats, which JAX_NUMPY_DTYPE_PROMOTION=strict refuses.
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return with_promotion


def _are_kernels(parameters):
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: any(getattr(entry, "key", None) == "kernel" for entry in path), parameters
    )
