"""The official blocks in float64, where a difference is only that their numbers are stored as float32."""

import functools
from types import SimpleNamespace

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import quick_jit
from flax import nnx
from tolerance import ROUNDING_F64, STORED_AS_F32, assert_close

from repmlp_jax import fuse_params
from repmlp_jax.interop.torch import deployed, from_torch, to_torch

NAMES = [
    name
    for name, case in golden.manifest().items()
    if case["constructor"] != "repmlp.RepMLP" and case["kind"] == "block"
]
QUICK = ("v1_light_identity", "v2_block_8x8")


def parameters(names):
    """The names, those that are not quick marked as slow; a test without names says what it needs."""
    marked = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked or [pytest.param("", marks=golden.needed)])


every_model = parameters(NAMES)
with_gradients = parameters([name for name in NAMES if "cot" in golden.tensors(name)])


def reference(name, quantity):
    """The official number, or the corrected one where the official code has a bug."""
    return golden.tensors(name).get(f"fixed.{quantity}", golden.tensors(name).get(quantity))


def nhwc(array):
    return golden.nhwc(array) if array.ndim == 4 else array


@functools.cache
def run(name):
    """The model of a case, what it gives in both modes, and the official conversion of it."""
    state_dict, x = golden.state_and_input(name)
    abstract = nnx.eval_shape(lambda: golden.make_model(name, rngs=nnx.Rngs(0), param_dtype=jnp.float64))
    model = from_torch(abstract, state_dict)
    x = jnp.asarray(golden.nhwc(x), jnp.float64)
    cotangent = golden.tensors(name).get("cot")
    cotangent = 0.0 if cotangent is None else jnp.asarray(nhwc(cotangent), jnp.float64)

    @quick_jit
    def train(model, x):
        def weigh(model, x):
            model = nnx.clone(model)
            y = model(x)
            return (y * cotangent).sum(), (y, model)

        gradient = jax.grad(weigh, argnums=(0, 1), allow_int=True, has_aux=True)
        (of_model, of_x), (y, after) = gradient(model, x)
        return y, after, of_model, of_x

    @quick_jit
    def evaluate(model, x):
        model.eval()
        return model(x)

    y_train, after, of_model, of_x = train(model, x)
    converted, fused = deployed(model), fuse_params(model)
    return SimpleNamespace(
        state_dict=state_dict,
        model=model,
        y_eval=evaluate(model, x),
        y_train=y_train,
        after=after,
        gradients=of_model,
        x_gradient=of_x,
        converted=converted,
        y_converted=evaluate(converted, x),
        y_fused=evaluate(fused, x),
        evaluate=lambda other: evaluate(other, x),
    )


@every_model
def test_outputs(name):
    for quantity in ("y_eval", "y_train"):
        expected = nhwc(reference(name, quantity))
        assert_close(getattr(run(name), quantity), expected, 2 * STORED_AS_F32)


@every_model
def test_norm_statistics_after_a_training_step(name):
    after = to_torch(run(name).after)
    expected = golden.part(name, "fixed.bn_after") or golden.part(name, "bn_after")
    assert expected
    for key, value in expected.items():
        assert_close(after[key], value, 2 * STORED_AS_F32)


@with_gradients
def test_gradients(name):
    assert_close(run(name).x_gradient, nhwc(reference(name, "x_grad")), 2 * STORED_AS_F32)
    found = nnx.state(run(name).gradients, nnx.Param)
    # With the gradients in the parameters' places, the tables give them their official names and axes.
    template = nnx.clone(run(name).model)
    nnx.update(template, found)
    gradients = to_torch(template)
    expected = golden.part(name, "fixed.grad") or golden.part(name, "grad")
    scale = max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        assert_close(gradients[key], value, 2 * STORED_AS_F32, scale)


@every_model
def test_fusing_changes_nothing(name):
    outcome = run(name)
    assert_close(outcome.y_converted, outcome.y_eval, ROUNDING_F64)
    assert_close(outcome.y_fused, outcome.y_eval, ROUNDING_F64)
    if reference(name, "y_deploy") is not None:
        assert_close(outcome.y_fused, nhwc(reference(name, "y_deploy")), 2 * STORED_AS_F32)


@every_model
def test_the_official_conversion(name):
    """What the official code fuses has the official keys and numbers, and loads."""
    expected = golden.part(name, "fixed.deploy") or golden.part(name, "deploy")
    if not expected:  # Recipe cases hold no weights.
        return
    converted = to_torch(run(name).converted)
    assert converted.keys() == expected.keys()
    for key, value in expected.items():
        assert_close(converted[key], value, 2 * STORED_AS_F32)
    loaded = from_torch(run(name).model, expected)
    assert_close(run(name).evaluate(loaded), run(name).y_eval, 4 * STORED_AS_F32)


@every_model
def test_the_round_trip_returns_every_bit_and_key(name):
    returned = to_torch(run(name).model)
    assert returned.keys() == run(name).state_dict.keys()
    for key, value in run(name).state_dict.items():
        assert (returned[key] == value).all()
        assert returned[key].shape == value.shape
