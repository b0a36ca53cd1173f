"""The official blocks and nets: their weights in, their numbers out, their weights out, in float64 and float32."""

import functools
from types import SimpleNamespace

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, quick_jit
from flax import nnx
from tolerance import ROUNDING_F64, STORED_AS_F32, assert_close

from repmlp_jax import fuse_params
from repmlp_jax.interop.torch import deployed, from_torch, to_torch

# Cases with gradients first (the nets have none) and those without stored weights last, so that the tests that need
# either have the head of the same list.
NAMES = sorted(
    (name for name, case in golden.manifest().items() if case["constructor"] != "repmlp.RepMLP"),
    key=lambda name: ("cot" not in golden.tensors(name), "recipe" in golden.manifest()[name]),
)
QUICK = {("v1_light_identity", "float64"), ("v2_block_8x8", "float64"), ("v2_block_8x8", "float32")}


def parameters(names):
    """Every name in both dtypes, those that are not quick marked as slow; a test without names says what it needs.

    By their scope the tests are sorted by case, so that one model after another is made and freed: together the
    nets are gigabytes.
    """
    marked = [
        pytest.param(name, dtype, marks=() if (name, dtype) in QUICK else pytest.mark.slow)
        for name in names
        # The nets of full width are only run as users run them: in float64 they say no more than their narrow twins.
        for dtype in (("float32",) if "recipe" in golden.manifest()[name] else ("float64", "float32"))
    ]
    return pytest.mark.parametrize(
        ("name", "dtype"), marked or [pytest.param("", "", marks=golden.needed)], scope="module"
    )


every_model = parameters(NAMES)
with_gradients = parameters([name for name in NAMES if "cot" in golden.tensors(name)])
with_weights = parameters([name for name in NAMES if "recipe" not in golden.manifest()[name]])


def reference(name, quantity):
    """The official number, or the corrected one where the official code has a bug."""
    return golden.tensors(name).get(f"fixed.{quantity}", golden.tensors(name).get(quantity))


def tolerance(name, quantity, dtype, largest):
    """What storing as float32 leaves, twice as nets pass it on; in float32 also how far the official code is off."""
    hint = golden.manifest()[name]["f32_error_hint"][quantity] if dtype == "float32" else 0.0
    return 2 * STORED_AS_F32 + 5 * hint / largest


def assert_official(actual, name, quantity, dtype):
    """Asserts that an output is the official one."""
    expected = nhwc(reference(name, quantity))
    assert actual.dtype == dtype
    assert_close(actual, expected, tolerance(name, quantity, dtype, np.abs(expected).max()))


def nhwc(array):
    return golden.nhwc(array) if array.ndim == 4 else array


@functools.lru_cache(maxsize=1)
def run(name, dtype):
    """The model of a case, what it gives in both modes, and the official conversion of it."""
    state_dict, x = golden.state_and_input(name)
    model = from_torch(abstract(golden.make_model, name, param_dtype=jnp.dtype(dtype)), state_dict)
    x = jnp.asarray(golden.nhwc(x), dtype)
    cotangent = golden.tensors(name).get("cot")
    cotangent = jnp.asarray(0.0 if cotangent is None else nhwc(cotangent), dtype)
    compiled = quick_jit if dtype == "float64" else jax.jit

    @compiled
    def train(model, x):
        def weigh(model, x):
            model = nnx.clone(model)
            y = model(x)
            return (y * cotangent).sum(), (y, model)

        gradient = jax.grad(weigh, argnums=(0, 1), allow_int=True, has_aux=True)
        (of_model, of_x), (y, after) = gradient(model, x)
        return y, after, of_model, of_x

    @compiled
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
def test_outputs(name, dtype):
    for quantity in ("y_eval", "y_train"):
        assert_official(getattr(run(name, dtype), quantity), name, quantity, dtype)


@every_model
def test_norm_statistics_after_a_training_step(name, dtype):
    after = to_torch(run(name, dtype).after)
    expected = golden.part(name, "fixed.bn_after") or golden.part(name, "bn_after")
    assert expected
    largest = np.abs(reference(name, "y_train")).max()
    for key, value in expected.items():
        assert_close(after[key], value, tolerance(name, "y_train", dtype, largest))


@with_gradients
def test_gradients(name, dtype):
    assert_official(run(name, dtype).x_gradient, name, "x_grad", dtype)
    # With the gradients in the parameters' places, the tables give them their official names and axes.
    template = nnx.clone(run(name, dtype).model)
    nnx.update(template, nnx.state(run(name, dtype).gradients, nnx.Param))
    gradients = to_torch(template)
    expected = golden.part(name, "fixed.grad") or golden.part(name, "grad")
    # Relative to the largest of all gradients: what is zero but for rounding has no scale of its own.
    scale = max(np.abs(value).max() for value in expected.values())
    for key, value in expected.items():
        assert_close(gradients[key], value, tolerance(name, "grad_max_abs", dtype, scale), scale)


@every_model
def test_fusing_changes_nothing(name, dtype):
    outcome = run(name, dtype)
    if dtype == "float64":
        assert_close(outcome.y_converted, outcome.y_eval, ROUNDING_F64)
        assert_close(outcome.y_fused, outcome.y_eval, ROUNDING_F64)
    # Ours folds more norms than the official conversion, with the same outcome.
    for output in (outcome.y_converted, outcome.y_fused):
        assert_official(output, name, "y_deploy", dtype)


@with_weights
def test_the_official_conversion(name, dtype):
    """What the official code fuses has the official keys and numbers, and loads."""
    expected = golden.part(name, "fixed.deploy") or golden.part(name, "deploy")
    converted = to_torch(run(name, dtype).converted)
    assert converted.keys() == expected.keys()
    largest = np.abs(reference(name, "y_deploy")).max()
    for key, value in expected.items():
        assert_close(converted[key], value, tolerance(name, "y_deploy", dtype, largest))
    loaded = from_torch(run(name, dtype).model, expected)
    assert_close(
        run(name, dtype).evaluate(loaded),
        run(name, dtype).y_eval,
        # The weights were stored as float32, on either side.
        2 * tolerance(name, "y_deploy", dtype, largest),
    )


@every_model
def test_the_round_trip_returns_every_bit_and_key(name, dtype):
    returned = to_torch(run(name, dtype).model)
    assert returned.keys() == run(name, dtype).state_dict.keys()
    for key, value in run(name, dtype).state_dict.items():
        assert (returned[key] == value).all()
        assert returned[key].shape == value.shape
