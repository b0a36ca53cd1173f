import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_recipe import get_config
from tolerance import ROUNDING_F32, assert_close

from repmlp_jax.storage.checkpoint_format import make_record, read, write
from repmlp_jax.storage.digest import digests
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


@pytest.mark.parametrize("name", ["poly", "linear", "steps", "constant"])
def test_other_schedules(name):
    config = get_config(schedule=name, epochs=10, learning_rate=0.4, warmup_epochs=1.0, drop_at=(0.5, 0.75))
    schedule = make_schedule(config, 20)
    assert schedule(0) == 0
    assert_close(schedule(10), 0.2, ROUNDING_F32)
    if name in ("poly", "linear"):
        for step in (20, 65, 110, 199):
            assert_close(schedule(step), 0.4 * (1 - (step - 20) / 180) ** (0.9 if name == "poly" else 1), ROUNDING_F32)
        assert schedule(200) == 0
    elif name == "constant":
        assert {float(schedule(step)) for step in (20, 65, 199)} == {float(np.float32(0.4))}
    else:
        for step, rate in ((20, 0.4), (99, 0.4), (101, 0.04), (149, 0.04), (151, 0.004), (199, 0.004)):
            assert_close(schedule(step), rate, ROUNDING_F32)


def test_drops_that_fall_on_one_step_all_count():
    config = get_config(schedule="steps", epochs=1, learning_rate=0.4, warmup_epochs=0.0, drop_at=(0.5, 0.501, 0.75))
    schedule = make_schedule(config, 20)
    for step, rate in ((9, 0.4), (10, 0.004), (14, 0.004), (15, 0.0004)):
        assert_close(schedule(step), rate, ROUNDING_F32)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_others_decay_kernels_apart_from_the_gradient(name):
    config = get_config(optimizer=name, learning_rate=0.1, weight_decay=0.5)
    optimizer, _ = make_optimizer(config, 20)
    parameters = {"fc": {"kernel": jnp.ones(3), "bias": jnp.ones(3)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters), parameters)
    assert_close(updates["fc"]["kernel"], jnp.full(3, -0.05), ROUNDING_F32)
    assert not updates["fc"]["bias"].any()


@pytest.mark.parametrize("name", ["lamb", "lion", "muon"])
def test_the_state_comes_back_from_a_checkpoint(tmp_path, name):
    parameters = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Param)
    optimizer, _ = make_optimizer(get_config(optimizer=name, clip_norm=1.0), 20)
    _, state = optimizer.update(parameters, optimizer.init(parameters), parameters)
    write(tmp_path / "1", state, make_record(1, state, {}, {}, {})).result()
    found = read(tmp_path / "1", jax.eval_shape(lambda: state))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert digests(found) == digests(state)


def test_lamb_scales_a_step_by_the_norm_of_what_it_moves():
    optimizer, _ = make_optimizer(get_config(optimizer="lamb", learning_rate=0.1, weight_decay=0.0), 20)
    parameters = {"one": {"kernel": jnp.full(4, 2.0)}, "other": {"kernel": jnp.full(4, 6.0)}}
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, parameters), optimizer.init(parameters), parameters)
    assert_close(updates["one"]["kernel"], jnp.full(4, -0.2), 1e-5)
    assert_close(updates["other"]["kernel"], jnp.full(4, -0.6), 1e-5)


def test_muon_makes_each_matrix_of_a_kernel_orthogonal_and_leaves_classifiers_to_adam():
    shapes = dict(fc=(8, 6), fc3=(2, 6, 6), conv=(3, 3, 4, 8), head=(8, 6), people=(8, 6), linear=(1, 1, 4, 8))
    random = np.random.default_rng(0)
    gradients = {
        name: {"kernel": jnp.asarray(random.normal(size=shape), jnp.float32)} for name, shape in shapes.items()
    }
    gradients["fc"]["bias"] = jnp.full(6, 0.5)
    # The head of faces is an embedding, and that of street scenes begins with a convolution.
    gradients["head"] |= {"conv": gradients.pop("conv"), "linear": gradients.pop("linear")}
    parameters = jax.tree.map(jnp.ones_like, gradients)
    optimizer, _ = make_optimizer(get_config(optimizer="muon", learning_rate=0.1, weight_decay=0.0), 20)
    updates, _ = optimizer.update(gradients, optimizer.init(parameters), parameters)
    matrices = [updates["fc"]["kernel"], *updates["fc3"]["kernel"], updates["head"]["conv"]["kernel"].reshape(36, 8)]
    for matrix in matrices:
        singular = np.linalg.svd(matrix, compute_uv=False)
        # Newton and Schulz's five steps leave them between 0.7 and 1.2; a gradient's are 10 times apart.
        assert singular.max() < 2 * singular.min()
        # As long as Adam's steps usually are: 0.2 of the rate for each number.
        assert_close(np.sqrt(np.square(matrix).mean()), 0.02, 0.3)
    classifiers = updates["head"], updates["head"]["linear"], updates["people"]
    for adams in (*(one["kernel"] for one in classifiers), updates["fc"]["bias"]):
        # The first step of Adam with Nesterov's momentum: 1 + 0.9 · 0.1 / (1 - 0.9²) times the rate.
        assert_close(np.abs(adams), np.full(adams.shape, 0.1 * (1 + 0.9 / 1.9)), 1e-4)


def test_gradients_are_clipped_by_the_norm_of_all():
    config = get_config(learning_rate=1.0, weight_decay=0.0, momentum=0.0, clip_norm=1.0)
    optimizer, _ = make_optimizer(config, 20)
    parameters = {"one": jnp.zeros(1), "other": jnp.zeros(1)}
    updates, _ = optimizer.update(
        {"one": jnp.full(1, 3.0), "other": jnp.full(1, 4.0)}, optimizer.init(parameters), parameters
    )
    assert_close(updates["one"], [-0.6], ROUNDING_F32)
    assert_close(updates["other"], [-0.8], ROUNDING_F32)


@pytest.mark.parametrize("kind", ["cosine", "linear", "poly", "steps", "constant"])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_schedules_work_where_jax_refuses_implicit_promotion(kind, warmup_epochs):
    config = types.SimpleNamespace(
        schedule=kind, epochs=4, warmup_epochs=warmup_epochs, learning_rate=0.1, drop_at=(0.5,), poly_power=0.9
    )
    with jax.numpy_dtype_promotion("strict"):
        rate = jax.jit(make_schedule(config, 5))(np.int32(7))
    assert 0 < rate <= 0.1
