"""Stacks of blocks, which `nnx.vmap` over a constructor makes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, build, evaluate, quick_jit
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import RepMLP, RepMLPNetBlock, fuse_params, fuse_report, quantise_params, to_torch
from repmlp_jax.blocks.layers import ConvBN

KINDS = {
    "block": functools.partial(build, RepMLP, **CASES["plain"]),
    "one partition": functools.partial(build, RepMLP, **CASES["one partition"]),
    "net's block": functools.partial(build, RepMLPNetBlock, features=4, partition_size=(3, 3), sharesets=2),
    "convolution": functools.partial(build, ConvBN, in_features=4, out_features=4, kernel_size=3),
}


def stacked(make):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make(seed=seed) for seed in range(3)))


X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 4)))


class Deep(nnx.Module):
    """A net that holds its layers as a stack and scans over it."""

    def __init__(self, layers):
        self.layers = layers
        self.last = KINDS["convolution"]()

    def __call__(self, x):
        y, _ = jax.lax.scan(lambda x, layer: (nnx.relu(layer(x)).astype(x.dtype), None), x, self.layers)
        return self.last(y)


@pytest.mark.parametrize("name", KINDS)
def test_a_stack_is_fused_to_a_stack(name):
    stack = stacked(KINDS[name])
    fused = fuse_params(stack)
    assert_identical(fused, jax.vmap(fuse_params)(stack))
    found = quick_jit(jax.vmap(lambda model, x: model(x), (0, None)))(fused, X)
    for seed, y in enumerate(found):
        assert_close(y, evaluate(KINDS[name](seed=seed), X), ROUNDING_F64)


def test_as_flax_makes_them():
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def make(rngs):
        return RepMLP(**CASES["plain"], rngs=rngs)

    stack = make(nnx.Rngs(0))
    assert fuse_params(stack).kernel.shape == (3, *fuse_params(RepMLP(**CASES["plain"], rngs=nnx.Rngs(0))).kernel.shape)


def test_a_stack_along_another_axis_says_what_to_do():
    axes = nnx.StateAxes({nnx.Param: 1, ...: 0})
    make = nnx.vmap(lambda rngs: RepMLP(**CASES["plain"], rngs=rngs), out_axes=axes)
    with pytest.raises(ValueError, match=r"its norms are a stack of 3, .*: stack it along the first axis"):
        fuse_params(make(nnx.Rngs(0).split(3)))


def test_a_stack_within_a_net():
    net = Deep(stacked(KINDS["block"]))
    assert_close(quick_jit(lambda net: net(X))(fuse_params(net)), evaluate(net, X), ROUNDING_F64)


def test_the_report_counts_every_block_of_a_stack():
    single, three = (
        fuse_report(build(RepMLP, **CASES["plain"])),
        fuse_report(Deep(stacked(KINDS["block"])), X.shape[1:]),
    )
    stack = next(block for block in three.blocks if block.path == "layers")
    assert stack.macs == tuple(3 * macs for macs in single.macs)
    assert stack.parameters == tuple(3 * count for count in single.parameters)


@pytest.mark.parametrize("name", KINDS)
def test_calling_a_stack_says_what_to_do(name):
    stack = stacked(KINDS[name])
    with pytest.raises(ValueError, match=r"is a stack of 3, as nnx.vmap.*: call it within nnx.vmap or nnx.scan"):
        stack(X)
    if name != "convolution":
        with pytest.raises(ValueError, match=r"this Fused\w+ is a stack of 3"):
            fuse_params(stack)(X)


def test_quantising_a_stack_says_what_to_do():
    fused = fuse_params(stacked(KINDS["block"]))
    with pytest.raises(ValueError, match=r"cannot quantise .*stack of .*: use jax.vmap\(quantise_params\)"):
        quantise_params(fused)


def test_exporting_a_stack_says_what_to_do():
    with pytest.raises(ValueError, match=r"to_torch: global_perceptron.norm is a stack of \(3,\) modules"):
        to_torch(stacked(KINDS["block"]))


class Crossed(nnx.Module):
    """A loop over norms, and in it a loop over as many convolutions."""

    def __init__(self):
        self.convs, self.norms = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(self.pair, range(2)))
        self.gains = nnx.Param(jnp.ones(2))

    @staticmethod
    def pair(seed):
        block = build(ConvBN, seed, in_features=4, out_features=4, kernel_size=3)
        return block.conv, block.norm

    def __call__(self, x):
        def over_norms(x, row):
            norm, gain = row
            return jax.lax.scan(lambda x, conv: (gain * nnx.relu(norm(conv(x))) + x, None), x, self.convs)[0], None

        return jax.lax.scan(over_norms, x, (self.norms, self.gains[...]))[0]


def test_a_norm_stays_out_of_a_layer_that_another_loop_goes_over():
    (norm,) = fuse_report(Crossed(), X).blocks
    assert "other loops go over the parameters" in norm.kept["norm"]
