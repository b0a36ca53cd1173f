"""Loss scaling for float16: when the scale changes, what a skipped step leaves, and that runs with it resume."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from tiny_recipe import get_config
from tolerance import assert_identical
from training_parts import killed_at, mesh_of

from repmlp_jax import load_model
from repmlp_jax.storage.checkpoint_format import read_record
from repmlp_jax.storage.digest import digests
from repmlp_jax.training import sharding, train_and_evaluate
from repmlp_jax.training.loss_scale import LARGEST, STEPS_TO_GROW, LossScale, adjusted
from repmlp_jax.training.step import init_state, make_step

pytestmark = pytest.mark.usefixtures("as_users_have_it")


@pytest.mark.parametrize(
    ("factor", "good_steps", "finite", "expected"),
    [
        (8.0, 5, True, (8.0, 6)),
        (8.0, 5, False, (4.0, 0)),
        (8.0, STEPS_TO_GROW - 1, True, (16.0, 0)),
        (8.0, STEPS_TO_GROW - 1, False, (4.0, 0)),
        (1.0, 5, False, (1.0, 0)),
        (LARGEST, STEPS_TO_GROW - 1, True, (LARGEST, 0)),
    ],
)
def test_the_scale_follows_the_gradients(factor, good_steps, finite, expected):
    scale = adjusted(LossScale(jnp.float32(factor), jnp.int32(good_steps)), jnp.bool_(finite))
    assert tuple(map(float, scale)) == expected
    assert (scale.factor.dtype, scale.good_steps.dtype) == (jnp.float32, jnp.int32)


class Product(nnx.Module):
    """A product in float16, with a statistic that counts its calls."""

    def __init__(self):
        self.weight = nnx.Param(jnp.ones(3))
        self.statistic = nnx.BatchStat(jnp.zeros(()))

    def loss(self, batch, key):
        self.statistic[...] = self.statistic[...] + 1
        y = self.weight[...].astype(jnp.float16) * batch["x"]
        return y.astype(jnp.float32).mean() * batch["times"][0], jnp.int32(0)


def trained(x, scaled_by, steps=1, times=1.0):
    """The states after each step on `x`, a number of float16."""
    model, optimizer = Product(), optax.sgd(1.0, momentum=0.9)
    sizes = dict(batch_size=1, steps_per_epoch=10, mesh=mesh_of(1), ema_decay=0.5)
    one_step = jax.jit(make_step(nnx.graphdef(model), optimizer, Product.loss, **sizes))
    states = [init_state(model, optimizer, averaged=True, scaled_by=scaled_by)]
    for _ in range(steps):
        states.append(
            one_step(states[-1], dict(x=jnp.full(3, x, jnp.float16), times=jnp.full(3, times)), jax.random.key(0))
        )
    return states


def test_a_scale_changes_no_bit_of_gradients_that_float16_holds():
    (*_, without), (*_, scaled) = (trained(0.37, scaled_by, steps=3) for scaled_by in (0.0, 1024.0))
    assert digests(without) == digests(scaled._replace(loss_scale=None))
    assert scaled.loss_scale.good_steps == 3


def test_small_gradients_are_kept_by_the_scale():
    """2⁻²⁴ is the smallest number of float16: a third of it is 0."""
    x = 2.0**-24
    assert [trained(x, scaled_by)[1].optimizer[0].trace["weight"][0] > 0 for scaled_by in (0.0, 256.0)] == [False, True]


def test_a_step_whose_gradients_overflow_moves_nothing_but_the_scale():
    start, skipped, moved = trained(8.0, 2.0**15, steps=2)
    for name in ("parameters", "optimizer", "statistics", "average"):
        assert digests(getattr(skipped, name)) == digests(getattr(start, name)), name
        assert digests(getattr(moved, name)) != digests(getattr(start, name)), name
    assert [int(state.step) for state in (start, skipped, moved)] == [0, 1, 2]
    assert [float(state.loss_scale.factor) for state in (start, skipped, moved)] == [2.0**15, 2.0**14, 2.0**14]
    assert skipped.totals.loss == 8
    assert moved.failed_step == -1


def test_where_no_scale_helps_the_step_is_named():
    """The loss is finite, and its gradient by a number of float16 is none."""
    _, *states = trained(60_000.0, 2.0, steps=3, times=10.0)
    assert [float(state.loss_scale.factor) for state in states] == [1, 1, 1]
    assert [int(state.failed_step) for state in states] == [-1, 2, 2]


@pytest.mark.parametrize(
    "arguments",
    [{}, dict(dtype="bfloat16"), dict(dtype="float16", param_dtype="float16")],
    ids=["float32", "bfloat16", "half"],
)
def test_a_scale_without_float16_is_refused(tmp_path, arguments):
    config = get_config(loss_scale=1024.0)
    config.model_arguments.update(arguments)
    with pytest.raises(
        ValueError, match=r"loss_scale=1024\.0 is for model_arguments\.dtype=float16 with param_dtype=float32"
    ):
        train_and_evaluate(config, tmp_path / "run")


@pytest.mark.slow
def test_a_killed_run_in_float16_ends_as_an_unbroken_one_and_compiles_its_step_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh_of(1))
    # A scale that overflows at first, so that steps are skipped.
    config = get_config(loss_scale=2.0**24, optimizer="lion", schedule="linear", warmup_epochs=0.5, clip_norm=1.0)
    config.model_arguments.dtype = "float16"
    config.accumulate, config.steps_per_call, config.learning_rate = 2, 3, 0.001
    compiled = []

    def listen(event, _, fun_name=None, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    train_and_evaluate(config, tmp_path / "unbroken")
    jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled.count("jit(step_on)") == 1
    with killed_at(33):
        train_and_evaluate(config, tmp_path / "killed")
    train_and_evaluate(config, tmp_path / "killed")
    records = [read_record(tmp_path / name / "checkpoints" / "44") for name in ("unbroken", "killed")]
    assert records[0]["digests"] == records[1]["digests"]
    assert {"loss_scale/factor", "loss_scale/good_steps"} < records[0]["digests"].keys()
    assert_identical(*(load_model(tmp_path / name / "fused") for name in ("unbroken", "killed")))
