import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_recipe import get_config
from tolerance import ROUNDING_F32, assert_close

from repmlp_jax.training.losses import cross_entropy
from repmlp_jax.training.optimizer import make_optimizer, make_schedule

pytestmark = pytest.mark.usefixtures("as_users_have_it")


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    _, schedule = make_optimizer(get_config(epochs=10, warmup_epochs=2.5, learning_rate=0.4), 20)
    assert schedule(0) == 0
    assert_close(schedule(25), 0.2, ROUNDING_F32)
    assert_close(schedule(50), 0.4, ROUNDING_F32)
    # Half of the 150 steps that are left: the middle of the cosine.
    assert_close(schedule(125), 0.2, ROUNDING_F32)
    assert schedule(199) > schedule(200) == 0


def test_without_a_warm_up_it_starts_at_its_peak():
    _, schedule = make_optimizer(get_config(epochs=10, learning_rate=0.4), 20)
    assert schedule(0) == np.float32(0.4)
    rates = [float(schedule(step)) for step in range(201)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0


def test_only_kernels_decay():
    config = get_config(learning_rate=0.1, weight_decay=0.5, momentum=0.0)
    optimizer, _ = make_optimizer(config, 20)
    parameters = {"fc": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}, "norm": {"scale": jnp.ones(3)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters), parameters)
    assert_close(updates["fc"]["kernel"], jnp.full(3, -0.05), ROUNDING_F32)
    assert not updates["fc"]["bias"].any()
    assert not updates["norm"]["scale"].any()


def test_steps_are_those_of_pytorch():
    config = get_config(epochs=1, learning_rate=0.1, weight_decay=0.01, momentum=0.9)
    optimizer, schedule = make_optimizer(config, 20)
    parameters = {"kernel": jnp.float32(2.0)}
    state = optimizer.init(parameters)
    expected, velocity = 2.0, 0.0
    for step, gradient in enumerate([1.0, -0.5, 0.25, 3.0]):
        updates, state = optimizer.update({"kernel": jnp.float32(gradient)}, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        # torch.optim.SGD: the decay joins the gradient, the rate stays outside of the velocity.
        velocity = 0.9 * velocity + gradient + 0.01 * expected
        expected -= float(schedule(step)) * velocity
        assert_close(parameters["kernel"], expected, ROUNDING_F32)


def test_cross_entropy():
    logits = np.random.default_rng(0).normal(0, 3, (5, 4)).astype(np.float32)
    labels = np.array([0, 3, 1, 1, 2], np.int32)
    log_probabilities = logits - np.log(np.exp(logits.astype(np.float64)).sum(1, keepdims=True))
    chosen = log_probabilities[np.arange(5), labels]
    logits, targets = jnp.asarray(logits), jax.nn.one_hot(labels, 4, dtype=jnp.float32)
    assert_close(cross_entropy(logits, targets), -chosen, ROUNDING_F32)
    smoothed = 0.9 * chosen + 0.1 * log_probabilities.mean(1)
    assert_close(cross_entropy(logits, 0.9 * targets + 0.1 / 4), -smoothed, ROUNDING_F32)
    assert cross_entropy(logits.astype(jnp.bfloat16), targets).dtype == jnp.float32


@pytest.mark.parametrize("name", ["poly", "steps"])
def test_other_schedules(name):
    config = get_config(schedule=name, epochs=10, learning_rate=0.4, warmup_epochs=1.0, drop_at=(0.5, 0.75))
    schedule = make_schedule(config, 20)
    assert schedule(0) == 0
    assert_close(schedule(10), 0.2, ROUNDING_F32)
    if name == "poly":
        for step in (20, 65, 110, 199):
            assert_close(schedule(step), 0.4 * (1 - (step - 20) / 180) ** 0.9, ROUNDING_F32)
        assert schedule(200) == 0
    else:
        for step, rate in ((20, 0.4), (99, 0.4), (101, 0.04), (149, 0.04), (151, 0.004), (199, 0.004)):
            assert_close(schedule(step), rate, ROUNDING_F32)


def test_drops_that_fall_on_one_step_all_count():
    config = get_config(schedule="steps", epochs=1, learning_rate=0.4, warmup_epochs=0.0, drop_at=(0.5, 0.501, 0.75))
    schedule = make_schedule(config, 20)
    for step, rate in ((9, 0.4), (10, 0.004), (14, 0.004), (15, 0.0004)):
        assert_close(schedule(step), rate, ROUNDING_F32)


def test_adamw_decays_kernels_apart_from_the_gradient():
    config = get_config(optimizer="adamw", learning_rate=0.1, weight_decay=0.5)
    optimizer, _ = make_optimizer(config, 20)
    parameters = {"fc": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters), parameters)
    assert_close(updates["fc"]["kernel"], jnp.full(3, -0.05), ROUNDING_F32)
    assert not updates["fc"]["bias"].any()


def test_gradients_are_clipped_by_the_norm_of_all():
    config = get_config(learning_rate=1.0, weight_decay=0.0, momentum=0.0, clip_norm=1.0)
    optimizer, _ = make_optimizer(config, 20)
    parameters = {"one": jnp.zeros(1), "other": jnp.zeros(1)}
    updates, _ = optimizer.update(
        {"one": jnp.full(1, 3.0), "other": jnp.full(1, 4.0)}, optimizer.init(parameters), parameters
    )
    assert_close(updates["one"], [-0.6], ROUNDING_F32)
    assert_close(updates["other"], [-0.8], ROUNDING_F32)


@pytest.mark.parametrize("kind", ["cosine", "poly", "steps"])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_schedules_work_where_jax_refuses_implicit_promotion(kind, warmup_epochs):
    config = types.SimpleNamespace(
        schedule=kind, epochs=4, warmup_epochs=warmup_epochs, learning_rate=0.1, drop_at=(0.5,), poly_power=0.9
    )
    with jax.numpy_dtype_promotion("strict"):
        rate = jax.jit(make_schedule(config, 5))(np.int32(7))
    assert 0 < rate <= 0.1
