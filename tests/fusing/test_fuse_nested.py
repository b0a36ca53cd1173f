"""Fusing what sits somewhere inside a user's own modules: in attributes, lists, dicts, shared or not."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from cases import build_block, evaluate, random_input, randomised
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import fuse_params
from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.blocks.repmlp import FusedRepMLP


class Net(nnx.Module):
    """A user's model: a block among other layers."""

    def __init__(self, block):
        options = dict(param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.name = "mine"
        self.linear = nnx.Linear(4, 4, **options)
        self.own_norm = nnx.BatchNorm(4, dtype=jnp.float64, **options)
        self.lone_norm = BatchNorm(4, param_dtype=jnp.float64)
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.body = nnx.Dict(first=block, layers=nnx.List([ConvBN(4, 4, 3, **options)]))

    def __call__(self, x):
        x = self.lone_norm(self.own_norm(self.linear(x)))
        return self.body.layers[0](self.body.first(self.dropout(x)))


def make_net():
    return randomised(Net(build_block()))


def test_a_block_deep_inside_is_replaced_and_the_rest_is_kept():
    net = make_net()
    x = random_input(net.body.first)
    fused = fuse_params(net)
    assert type(fused) is Net
    assert fused.name == "mine"
    assert type(fused.body.first) is FusedRepMLP
    assert type(fused.body.layers[0]) is nnx.Conv
    assert_close(evaluate(fused, x), evaluate(net, x), ROUNDING_F64)


@pytest.mark.parametrize("name", ["linear", "own_norm", "lone_norm"])
def test_other_layers_are_copies_with_the_same_bits(name):
    net = make_net()
    net.eval()
    fused = fuse_params(net)
    mine, copy = getattr(net, name), getattr(fused, name)
    assert type(copy) is type(mine)
    assert_identical(copy, mine)
    parameter = "kernel" if name == "linear" else "mean"
    before = np.asarray(getattr(mine, parameter)[...])
    getattr(copy, parameter)[...] = jnp.ones_like(before)
    np.testing.assert_array_equal(getattr(mine, parameter)[...], before)


def variables_and_modules(model):
    return {id(node) for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Variable | nnx.Module)}


def test_the_fused_model_shares_no_variable_with_the_given_one():
    net = make_net()
    assert variables_and_modules(net).isdisjoint(variables_and_modules(fuse_params(net)))


def test_a_block_asked_for_its_fused_twin_shares_no_variable_with_it():
    block = build_block()
    assert variables_and_modules(block).isdisjoint(variables_and_modules(block.fused()))


def test_the_result_is_in_evaluation_mode_and_the_given_model_still_in_training():
    net = make_net()
    net.train()
    fused = fuse_params(net)
    assert fused.own_norm.use_running_average
    assert fused.lone_norm.use_running_average
    assert fused.dropout.deterministic
    assert not net.own_norm.use_running_average
    assert not net.dropout.deterministic


class Branches(nnx.Module):
    """Holds the same block in several places."""

    def __init__(self, branches):
        self.branches = branches

    def blocks(self):
        container = self.branches
        return list(container.values() if isinstance(container, nnx.Dict | dict) else container)

    def __call__(self, x):
        return sum(block(x) for block in self.blocks())


CONTAINERS = {
    "nnx.List": nnx.List,
    "nnx.Dict": lambda blocks: nnx.Dict({f"block{index}": block for index, block in enumerate(blocks)}),
    "list": nnx.data,
    "tuple": lambda blocks: nnx.data(tuple(blocks)),
    "dict": lambda blocks: nnx.data({f"block{index}": block for index, block in enumerate(blocks)}),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_shared_block_is_fused_once_and_stays_shared(container):
    shared, other = build_block(), build_block(seed=1)
    model = Branches(CONTAINERS[container]([shared, other, shared]))
    fused = fuse_params(model)
    blocks = fused.blocks()
    assert type(fused.branches) is type(model.branches)
    assert [type(block) for block in blocks] == [FusedRepMLP] * 3
    assert blocks[0] is blocks[2]
    assert blocks[0] is not blocks[1]
    assert [type(block) for block in model.blocks()] == [type(shared)] * 3
    x = random_input(shared)
    assert_close(evaluate(fused, x), evaluate(model, x), ROUNDING_F64)


def test_a_block_shared_by_two_parents_stays_shared():
    shared = build_block()
    model = nnx.Sequential(Branches(nnx.List([shared])), Branches(nnx.List([shared])))
    fused = fuse_params(model)
    assert fused.layers[0] is not fused.layers[1]
    assert fused.layers[0].branches[0] is fused.layers[1].branches[0]


def test_a_whole_parent_that_is_shared_stays_shared():
    parent = Branches(nnx.List([build_block()]))
    fused = fuse_params(nnx.Sequential(parent, parent))
    assert fused.layers[0] is fused.layers[1]
    assert type(fused.layers[0].branches[0]) is FusedRepMLP


def test_containers_inside_containers():
    shared = build_block()
    model = Branches(nnx.data([{"deep": [shared]}, [shared]]))
    fused = fuse_params(model)
    assert type(fused.branches[0]["deep"][0]) is FusedRepMLP
    assert fused.branches[0]["deep"][0] is fused.branches[1][0]


class Pair(NamedTuple):
    """A container of the user's own."""

    name: str
    block: nnx.Module


def test_named_tuples_and_pytrees_that_are_no_modules():
    class Holder(nnx.Pytree):
        def __init__(self, block):
            self.block = block

    shared = build_block()
    fused = fuse_params(Branches(nnx.data([Pair("first", shared), Holder(shared)])))
    pair, holder = fused.branches
    assert type(pair) is Pair
    assert pair.name == "first"
    assert type(pair.block) is FusedRepMLP
    assert holder.block is pair.block


def test_a_module_that_holds_itself():
    model = Branches(nnx.List([build_block()]))
    model.myself = model
    fused = fuse_params(model)
    assert fused.myself is fused
    assert type(fused.branches[0]) is FusedRepMLP


def test_the_outermost_module_with_fused_decides():
    class Outer(nnx.Module):
        def __init__(self, inner):
            self.inner = inner

        def fused(self):
            return nnx.List([self.inner])

    model = nnx.Sequential(Outer(build_block()))
    assert type(fuse_params(model).layers[0][0]) is type(model.layers[0].inner)
