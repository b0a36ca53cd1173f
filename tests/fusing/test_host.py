"""What is computed on the host: another of the virtual devices stands for an accelerator."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import build, build_block
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tolerance import assert_identical

from repmlp_jax import PureMLP, fuse_params, quantise_params
from repmlp_jax.fusing import fuse, host
from repmlp_jax.fusing.host import transformed_on_host

SMALL = dict(num_classes=3, image_size=(4, 4), in_features=2, widths=(4,), partition_size=(2, 2), conv_kernels=(1, 3))


@pytest.fixture
def accelerator(monkeypatch):
    device = jax.devices()[3]
    monkeypatch.setattr(host, "is_accelerator", lambda other: other == device)
    return device


def placed(model, device):
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.device_put(state, device))


def leaves(model):
    return jax.tree.leaves(nnx.state(model))


@pytest.mark.parametrize("transform", [fuse_params, lambda model: quantise_params(fuse_params(model))])
def test_a_model_on_an_accelerator_gives_the_bits_of_one_on_the_host_and_stays_there(accelerator, transform):
    model = build(PureMLP, **SMALL)
    found = transform(placed(model, accelerator))
    assert {(leaf.device, leaf.committed) for leaf in leaves(found)} == {(accelerator, True)}
    assert_identical(found, transform(model))


@pytest.mark.parametrize("verb", ["fuse", "quantise"])
def test_what_is_checked_on_an_accelerator_is_the_hosts_copy(accelerator, verb, monkeypatch):
    checked = []
    monkeypatch.setattr(fuse, "check_finite", lambda arrays, what: checked.extend(arrays.values()))
    model = build_block()
    transform = fuse_params if verb == "fuse" else quantise_params
    transform(placed(model if verb == "fuse" else fuse_params(model), accelerator))
    assert {array.device for array in checked if isinstance(array, jax.Array)} == {host.host()}


def test_the_arithmetic_is_the_hosts(accelerator):
    seen = []

    def look(model):
        seen.extend({leaf.device for leaf in leaves(model)})
        seen.append(jnp.zeros(()).device)
        return model

    model = placed(build_block(), accelerator)
    result = transformed_on_host(look, model)
    assert set(seen) == {host.host()} == {jax.devices()[0]}
    # What comes out as it went in is not copied back and forth.
    assert all(one is other for one, other in zip(leaves(result), leaves(model), strict=True))


def test_arrays_that_may_move_may_still_move(accelerator):
    with jax.default_device(accelerator):
        model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
        model.norm = nnx.Param(jnp.ones(3))

    def double(model):
        model = nnx.clone(model)
        model.norm[...] = 2 * model.norm[...]
        return model

    result = transformed_on_host(double, model)
    assert (result.norm[...].device, result.norm[...].committed) == (accelerator, False)
    np.testing.assert_array_equal(result.norm[...], 2)


def test_a_block_with_two_parents_stays_one(accelerator):
    block = build_block()
    model = nnx.List([block, nnx.Dict(same=block)])

    class Parent(nnx.Module):
        def __init__(self, children):
            self.children = children

    fused = fuse_params(placed(Parent(model), accelerator))
    assert fused.children[0] is fused.children[1]["same"]


def test_what_is_traced_abstract_or_spread_stays_where_it_is(accelerator):
    model = build_block()
    on_accelerator = placed(model, accelerator)

    def where_it_is(model):
        assert not any(leaf.device == host.host() for leaf in leaves(model) if isinstance(leaf, jax.Array))
        return model

    nnx.eval_shape(lambda model: transformed_on_host(lambda model: model, model), model)
    jax.jit(lambda model: nnx.state(fuse_params(model)))(on_accelerator)
    # A model that a traced function closes over has values, but what is computed of it has none yet.
    closed_over = jax.jit(lambda: nnx.state(fuse_params(on_accelerator)))()
    assert jax.tree.structure(closed_over) == jax.tree.structure(nnx.state(fuse_params(model)))
    mesh = jax.make_mesh((2,), ("fsdp",), devices=jax.devices()[3:5])
    transformed_on_host(where_it_is, placed(model, NamedSharding(mesh, PartitionSpec())))
    graphdef, state = nnx.split(model)
    devices = iter(jax.devices()[1:4] * len(leaves(model)))
    scattered = nnx.merge(graphdef, jax.tree.map(lambda leaf: jax.device_put(leaf, next(devices)), state))
    transformed_on_host(where_it_is, scattered)
