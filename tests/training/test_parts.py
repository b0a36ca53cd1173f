"""Training a part of a model, and parts at rates of their own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params
from tiny_recipe import get_config
from tolerance import ROUNDING_F32, assert_close, assert_trees_close
from training_parts import killed_at, mesh_of, prepare

from repmlp_jax import RepMLPNet, load_model
from repmlp_jax.models.registry import create_model
from repmlp_jax.models.state import arrays_of
from repmlp_jax.storage.checkpoint_format import read_record
from repmlp_jax.storage.digest import digests
from repmlp_jax.training import loop, sharding, train_and_evaluate
from repmlp_jax.training.average import models_of
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.parts import parts_of

pytestmark = pytest.mark.usefixtures("as_users_have_it")
HEAD = {("head", "bias"), ("head", "kernel")}


def net(rngs):
    return RepMLPNet(
        (1, 2), (4, 8), 3, partition_sizes=((2, 2), (2, 2)), sharesets=(1, 1), patch_size=2, in_features=1, rngs=rngs
    )


def names(parts):
    return {".".join(map(str, path[:3])) for path in parts.trained}


def flat(state):
    return {
        path: np.asarray(leaf)
        for path, leaf in nnx.to_flat_state(state)
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


@pytest.mark.parametrize(
    ("changes", "trained"),
    [
        (dict(train_only="head"), {"head.linear.kernel", "head.linear.bias", "head.norm.scale", "head.norm.bias"}),
        (dict(train_only="head", freeze="*.norm"), {"head.linear.kernel", "head.linear.bias"}),
        (dict(train_only="halvings.0.conv, head.linear.b*"), {"halvings.0.conv", "head.linear.bias"}),
        (
            dict(freeze="embedding,stages,head.norm"),
            {"halvings.0.conv", "halvings.0.norm", "head.linear.kernel", "head.linear.bias"},
        ),
    ],
)
def test_parts_are_named_by_modules_parameters_and_patterns(changes, trained):
    assert names(parts_of(get_config(**changes), net)) == trained


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(freeze="stage"),
            "freeze='stage' matches no part of the model; the nearest are stages, ",
        ),
        (dict(train_only="head,neck"), "train_only='neck' matches no part of the model; the nearest are head"),
        (dict(train_only="head", freeze="head"), "with train_only='head' and freeze='head' nothing trains"),
        (dict(rate_factors="haed=2"), "rate_factors='haed' matches no part of the model; the nearest are head"),
        (dict(rate_factors="head"), "rate_factors: 'head' must be PATTERN=FACTOR, with a factor above 0"),
        (dict(rate_factors="head=0"), "rate_factors: 'head=0' must be"),
        (dict(rate_factors="head=nan"), "rate_factors: 'head=nan' must be"),
        (dict(freeze="head", rate_factors="head=2"), "rate_factors='head' is of a part that does not train"),
        (dict(freeze=" , "), "' , ' names no part of the model"),
        (dict(layer_decay=0.0), "layer_decay=0.0 must be above 0 and not above 1"),
        (dict(layer_decay=1.1), "layer_decay=1.1 must be above 0 and not above 1"),
    ],
)
def test_parts_that_are_not_there_are_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(get_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rates_fall_from_block_to_block_towards_the_input():
    parts = parts_of(get_config(layer_decay=0.5, rate_factors="embedding.norm=3, head=10"), net)
    rates = {".".join(map(str, path[:3])): factor for path, factor in parts.factors.items()}
    assert [
        rates[name] for name in ("head.linear.bias", "stages.1.1", "stages.1.0", "halvings.0.conv", "stages.0.0")
    ] == [*(10, 0.5, 0.25, 0.125, 0.0625)]
    assert rates["embedding.conv.kernel"] == 0.5**5
    assert rates["embedding.norm.scale"] == 3 * 0.5**5
    assert parts.summary(nnx.eval_shape(lambda: net(nnx.Rngs(0)))) == "rates     0.0312 to 10 times the learning rate"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_factor_is_one_of_the_learning_rate(optimizer):
    """Two steps with a factor are those with another rate, decay included."""
    parameters = {"one": {"kernel": jnp.ones(2)}, "other": {"kernel": jnp.ones(2)}}

    def trained(rate, factors=None):
        config = get_config(optimizer=optimizer, learning_rate=rate, weight_decay=0.1, schedule="steps", drop_at=())
        rule, _ = make_optimizer(config, 20, factors)
        now, state = parameters, rule.init(parameters)
        for _ in range(2):
            updates, state = rule.update(jax.tree.map(lambda leaf: 0.3 * leaf, now), state, now)
            now = optax.apply_updates(now, updates)
        return now

    factored = trained(0.1, {("one", "kernel"): 0.2, ("other", "kernel"): 1.0})
    for name, rate in (("one", 0.02), ("other", 0.1)):
        assert_close(factored[name]["kernel"], trained(rate)[name]["kernel"], ROUNDING_F32)


def products(prepared):
    """The number of matrix products and convolutions in a step."""

    def count(jaxpr):
        inner = (count(one) for equation in jaxpr.eqns for one in jaxprs_in_params(equation.params))
        return sum(one.primitive.name in ("dot_general", "conv_general_dilated") for one in jaxpr.eqns) + sum(inner)

    train_steps, *arguments = prepared
    return count(jax.make_jaxpr(lambda *arguments: train_steps(*arguments, 1))(*arguments).jaxpr)


@pytest.mark.slow
def test_only_the_head_changes_and_only_for_it_are_there_gradients_momenta_and_averages():
    whole = prepare(get_config(), mesh_of(1))
    head = prepare(get_config(train_only="head", ema_decay=0.9), mesh_of(1))
    after = head.train(3)
    changed = {
        name for name, value in flat(after.parameters).items() if (value != flat(head.state.parameters)[name]).any()
    }
    assert changed == HEAD
    # The norms keep their statistics, counts included.
    assert digests(after.statistics) == digests(head.state.statistics)
    momenta = [sum(leaf.nbytes for leaf in jax.tree.leaves(one.state.optimizer)) for one in (whole, head)]
    assert momenta == [4 * 22_130 + 4, 4 * (8 * 10 + 10) + 4]
    assert products(head) < 0.5 * products(whole)
    assert flat(after.average.parameters).keys() == HEAD
    graphdef = nnx.graphdef(
        nnx.eval_shape(lambda: create_model("pure_mlp", rngs=nnx.Rngs(0), **get_config().model_arguments))
    )
    arrays, averages = (arrays_of(model) for model in models_of(after, graphdef).values())
    assert {name for name in arrays if (arrays[name] != averages[name]).any()} == {"head.kernel", "head.bias"}


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 4])
def test_a_part_trains_on_eight_devices_as_on_one(fsdp):
    config = get_config(learning_rate=0.01, freeze="embedding,stages.0.0", layer_decay=0.5)
    config.model_arguments.update(widths=(32,), groups=1)
    one, eight = (prepare(config, mesh).train(3) for mesh in (mesh_of(1), mesh_of(8, fsdp)))
    assert_trees_close(eight.parameters, one.parameters, 1e-5)
    assert_trees_close(eight.statistics, one.statistics, 1e-5)


@pytest.mark.slow
def test_a_killed_fine_tuning_ends_as_an_unbroken_one_and_says_what_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda **_: mesh_of(1))
    lines = []
    monkeypatch.setattr(loop, "print_line", lambda text: lines.extend(text.splitlines()))
    train_and_evaluate(get_config(epochs=1), tmp_path / "before")
    changes = dict(
        epochs=1, init_from=str(tmp_path / "before" / "model"), train_only="stages.0.2,head", layer_decay=0.5
    )
    config = get_config(**changes, steps_per_call=2, optimizer="adamw", ema_decay=0.9)
    train_and_evaluate(config, tmp_path / "unbroken")
    (trained,) = (line for line in lines if line.startswith("trained   "))
    assert re.fullmatch(
        r"trained   [\d,]+ of 22,130 parameters: head.bias, head.kernel, stages.0.2.* and \d+ more", trained
    )
    assert "rates     0.25 to 1 times the learning rate" in lines
    with killed_at(14):
        train_and_evaluate(config, tmp_path / "killed")
    train_and_evaluate(config, tmp_path / "killed")
    records = [read_record(tmp_path / name / "checkpoints" / "22") for name in ("unbroken", "killed")]
    assert records[0]["digests"] == records[1]["digests"]
    before, after = (arrays_of(load_model(tmp_path / name / "model")) for name in ("before", "unbroken"))
    changed = {name for name in before if (before[name] != after[name]).any()}
    assert {name.rpartition(".")[0].split(".")[0] for name in changed} == {"head", "stages"}
    assert all(name.startswith(("head", "stages.0.2")) for name in changed)
