"""Optimizers and learning-rate schedules."""

import collections
import functools
from collections.abc import Mapping

import jax
import optax

# The names of modules with the kernel of a classifier: of images, of images or pixels behind a norm or conv, of faces.
CLASSIFIERS = "head", "linear", "people"


def make_optimizer(
    config, steps_per_epoch: int, factors: Mapping[tuple, float] | None = None
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimizer and the learning-rate schedule that a configuration asks for.

    SGD follows PyTorch and adds the decay to the gradient; the others decouple it. Only kernels decay, not biases and
    norms.

    Args:
        config: as `default_config()`.
        steps_per_epoch: of the schedule.
        factors: path of a parameter → factor of its learning rate; empty or None: 1 for all.
    """
    schedule = make_schedule(config, steps_per_epoch)
    if config.optimizer in ("adamw", "lamb", "lion"):
        make_rule = getattr(optax, config.optimizer)
        rule = [make_rule(schedule, weight_decay=config.weight_decay, mask=_are_kernels)]
    elif config.optimizer == "muon":
        rule = [
            # Its steps are as long as Adam's (arXiv 2502.16982), which moves what is no matrix at the same rate.
            optax.contrib.muon(1.0, muon_weight_dimension_numbers=_matrices, consistent_rms=0.2),
            optax.add_decayed_weights(-config.weight_decay, mask=_are_kernels),  # of Adam's kernels, too
            optax.scale_by_schedule(schedule),
        ]
    else:
        rule = [
            optax.add_decayed_weights(config.weight_decay, mask=_are_kernels),
            optax.sgd(schedule, momentum=config.momentum),
        ]
    if config.clip_norm:
        rule.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if factors:
        by_path = functools.partial(jax.tree.map_with_path, lambda path, update: update * factors[_keys(path)])
        rule.append(optax.stateless(lambda updates, _: by_path(updates)))
    return optax.chain(*rule), schedule


def make_schedule(config, steps_per_epoch: int) -> optax.Schedule:
    """A linear warm-up, then `config.schedule`."""
    warmup = round(config.warmup_epochs * steps_per_epoch)
    left = max(1, config.epochs * steps_per_epoch - warmup)
    peak = config.learning_rate

    def drops():
        """Step → factor; in short trainings several drops may fall on one step."""
        steps = collections.Counter(round(share * (left + warmup)) - warmup for share in config.drop_at)
        return {step: 0.1**number for step, number in steps.items()}

    schedule = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, left),
        "linear": lambda: optax.linear_schedule(peak, 0.0, left),
        "poly": lambda: optax.polynomial_schedule(peak, 0.0, config.poly_power, left),
        "steps": lambda: optax.piecewise_constant_schedule(peak, drops()),
        "constant": lambda: optax.piecewise_constant_schedule(peak),
    }[config.schedule]()
    if warmup:
        schedule = optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])

    def with_promotion(count):
        # Optax mixes integers and floats, which JAX_NUMPY_DTYPE_PROMOTION=strict refuses.
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return with_promotion


def _are_kernels(parameters):
    return jax.tree.map_with_path(lambda path, _: "kernel" in _keys(path), parameters)


def _matrices(parameters):
    """The axes of each kernel that Muon sums over, and its outputs; None: it is for Adam, as classifiers are."""

    def axes(path, leaf):
        keys = _keys(path)
        if "kernel" not in keys or keys[keys.index("kernel") - 1] in CLASSIFIERS or leaf.ndim < 2:
            return None
        # Flat kernels (groups, inputs, outputs) are a matrix for each group, convolutions (H, W, inputs, outputs) one.
        inputs = (1,) if leaf.ndim == 3 else tuple(range(leaf.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(inputs, leaf.ndim - 1)

    return jax.tree.map_with_path(axes, parameters)


def _keys(path) -> tuple:
    return tuple(entry.key for entry in path if hasattr(entry, "key"))
