"""Rematerialisation changes what is remembered, and nothing else."""

import math

import jax
import jax.numpy as jnp
import pytest
from cases import abstract, evaluate, quick_jit, random_input, randomised
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_trees_close

from repmlp_jax import RepMLPNet, RepMLPResNet

NETS = {
    "RepMLPNet": lambda **options: RepMLPNet(
        (2, 3), (8, 16), 5, partition_sizes=((8, 8), (4, 4)), sharesets=(2, 4), stochastic_depth=0.5, **options
    ),
    "RepMLPResNet": lambda **options: RepMLPResNet(
        (1, 2, 2, 1),
        5,
        block="light",
        image_size=(32, 32),
        partition_size=(2, 2),
        groups=(2, 2),
        widths=(16, 32, 64, 64),
        **options,
    ),
}


def loss_and_statistics(model, x):
    model = nnx.clone(model)
    return (model(x) ** 2).mean(), nnx.state(model, (nnx.BatchStat, nnx.RngCount))


@quick_jit
def training_step(model, x):
    return jax.grad(loss_and_statistics, has_aux=True, allow_int=True)(model, x)


def build(name, **options):
    make = NETS[name]
    model = randomised(abstract(make, param_dtype=jnp.float64, **options))
    return model, random_input(model, 4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_gradients_statistics_and_random_draws_stay_the_same(name):
    model, x = build(name)
    gradients, statistics = training_step(model, x)
    other_gradients, other_statistics = training_step(build(name, rematerialise=True)[0], x)
    assert jax.tree.leaves(other_statistics)
    assert_trees_close(other_statistics, statistics, ROUNDING_F64)
    expected, actual = (nnx.state(one, nnx.Param) for one in (gradients, other_gradients))
    # Of all gradients together: what cancels to almost nothing has no scale of its own.
    scale = max(float(abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    assert_trees_close(actual, expected, ROUNDING_F64, scale)


@pytest.mark.slow
def test_a_training_step_keeps_less():
    def bytes_kept(**options):
        model, x = build("RepMLPNet", **options)
        graphdef, parameters, statistics = nnx.split(model, nnx.Param, ...)

        def loss(parameters, x):
            return loss_and_statistics(nnx.merge(graphdef, parameters, statistics, copy=True), x)

        backward = jax.eval_shape(lambda parameters, x: jax.vjp(loss, parameters, x, has_aux=True)[1], parameters, x)
        return sum(math.prod(kept.shape) * kept.dtype.itemsize for kept in jax.tree.leaves(backward))

    assert bytes_kept(rematerialise=True) < 0.2 * bytes_kept()


def test_evaluation_changes_nothing():
    (model, x), (other, _) = build("RepMLPNet"), build("RepMLPNet", rematerialise=True)
    assert_close(evaluate(other, x), evaluate(model, x), ROUNDING_F64)
