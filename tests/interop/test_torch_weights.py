"""RepMLP blocks against the official implementation: its weights in, its numbers out, its weights out."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PLAIN, abstract, apply, build_block, quick_jit
from flax import nnx
from tolerance import STORED_AS_F32, assert_close, assert_identical, worst_error

from repmlp_jax import RepMLP, fuse_params
from repmlp_jax.interop.torch import from_torch, to_torch

BLOCKS = golden.names("repmlp.RepMLP", "block")


@functools.cache
def load(name, dtype):
    """The block of a case with its weights."""
    return from_torch(abstract(golden.make_block, name, param_dtype=jnp.dtype(dtype)), golden.part(name, "train"))


@functools.cache
def run(name, dtype):
    """The block of a case with its weights, and all that the case has numbers for, compiled as one."""
    block = load(name, dtype)
    x = jnp.asarray(golden.nhwc(golden.tensors(name)["x"]), dtype)
    cotangent = jnp.asarray(golden.nhwc(golden.tensors(name)["cot"]), dtype)
    graphdef, parameters, statistics = nnx.split(block, nnx.Param, ...)

    def train(parameters, x):
        model = nnx.merge(graphdef, parameters, statistics, copy=True)
        y = model(x)
        return jnp.sum(y * cotangent), (y, nnx.state(model, nnx.BatchStat))

    @(quick_jit if dtype == "float64" else jax.jit)
    def everything(block, parameters, x):
        gradients, (y_train, bn_after) = jax.grad(train, argnums=(0, 1), has_aux=True)(parameters, x)
        fused = fuse_params(block)
        y_eval = nnx.view(block, use_running_average=True)(x)
        return dict(y_eval=y_eval, y_train=y_train, y_deploy=fused(x), gradients=gradients), bn_after, fused

    outputs, bn_after, fused = everything(block, parameters, x)
    gradients, outputs["x_grad"] = outputs.pop("gradients")
    buffers = to_torch(nnx.merge(graphdef, parameters, bn_after))
    return block, fused, outputs, buffers, to_torch(nnx.merge(graphdef, gradients, statistics))


def tolerance(name, quantity, dtype):
    """How far the official code is from itself, and its numbers as stored from exact, over the largest."""
    if dtype == "float64":
        return STORED_AS_F32
    return STORED_AS_F32 + 5 * golden.manifest()[name]["f32_error_hint"][quantity] / largest(name, quantity)


def largest(name, quantity):
    if quantity == "grad_max_abs":
        return golden.manifest()[name]["max_abs_grad_all"]
    return np.abs(expected(name, quantity)).max()


def expected(name, quantity):
    """A quantity of the case, from the corrected copy where the official code has a bug."""
    tensors = golden.tensors(name)
    return tensors.get(f"fixed.{quantity}", tensors[quantity])


# Compiling is slow, so the fast loop has the three cases that differ most, and float32 for that with C ≠ O alone.
FAST = {"v1_block_gp_g4", "v1_block_nonsquare_g3", "v1_block_nogp_c4o8"}
FAST_IN_FLOAT32 = {"v1_block_nogp_c4o8"}
every_block_in_both_dtypes = pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if name in fast else pytest.mark.slow)
        for name in BLOCKS
        for dtype, fast in (("float64", FAST), ("float32", FAST_IN_FLOAT32))
    ],
)
every_block = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in BLOCKS]
)


@golden.needed
@every_block_in_both_dtypes
@pytest.mark.parametrize("quantity", ["y_eval", "y_train", "y_deploy", "x_grad"])
def test_outputs_and_the_inputs_gradient(name, dtype, quantity):
    actual = run(name, dtype)[2][quantity]
    assert actual.dtype == dtype
    assert_close(actual, golden.nhwc(expected(name, quantity)), tolerance(name, quantity, dtype))


@golden.needed
@every_block_in_both_dtypes
def test_batch_norm_buffers_after_a_step(name, dtype):
    buffers = run(name, dtype)[3]
    for key, value in golden.part(name, "bn_after").items():
        if key.endswith("num_batches_tracked"):
            assert buffers[key] == value
        else:
            assert_close(buffers[key], value, tolerance(name, "y_train", dtype))


@golden.needed
@every_block_in_both_dtypes
def test_gradients_of_all_parameters(name, dtype):
    gradients, references = run(name, dtype)[4], golden.part(name, "grad")
    trained = {key for key in gradients if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert trained == references.keys()
    for key, reference in references.items():
        # Relative to the largest of all gradients: what is zero but for rounding has no scale of its own.
        scale = largest(name, "grad_max_abs")
        assert_close(gradients[key], reference, tolerance(name, "grad_max_abs", dtype), scale)


@golden.needed
@every_block_in_both_dtypes
def test_fused_weights(name, dtype):
    deployed = golden.part(name, "fixed.deploy") or golden.part(name, "deploy")
    converted = to_torch(run(name, dtype)[1])
    assert converted.keys() == deployed.keys()
    for key, value in deployed.items():
        assert_close(converted[key], value, tolerance(name, "y_deploy", dtype))


@golden.needed
def test_the_official_conversion_is_wrong_where_channels_differ():
    name = "v1_block_nogp_c4o8"
    fused = to_torch(run(name, "float64")[1])
    assert worst_error(fused["fc3.weight"], golden.part(name, "deploy")["fc3.weight"]) > 0.1


@golden.needed
@every_block
def test_deployed_weights_load_into_the_fused_block(name):
    _, fused, outputs, *_ = run(name, "float64")
    loaded = from_torch(fused, golden.part(name, "fixed.deploy") or golden.part(name, "deploy"))
    x = jnp.asarray(golden.nhwc(golden.tensors(name)["x"]), jnp.float64)
    # The weights were stored as float32: their error averages out over the sum that each output is.
    assert_close(apply(loaded, x), outputs["y_deploy"], 4 * STORED_AS_F32)


@golden.needed
@every_block
def test_the_round_trip_returns_every_bit_and_key(name):
    official = golden.part(name, "train")
    returned = to_torch(load(name, "float32"))
    assert returned.keys() == official.keys()
    for key, value in official.items():
        assert returned[key].dtype == value.dtype, key
        assert returned[key].shape == value.shape, key
        assert returned[key].tobytes() == value.tobytes(), key


@pytest.mark.parametrize("fused", [False, True])
def test_our_own_round_trip_is_the_identity(fused):
    model = fuse_params(build_block()) if fused else build_block()
    assert_identical(from_torch(model, to_torch(model)), model)


def test_loading_leaves_the_given_model_alone():
    block = build_block()
    before = nnx.clone(block)
    from_torch(block, to_torch(build_block(seed=1)))
    assert_identical(block, before)


def test_an_abstract_model_will_do():
    block = build_block()
    empty = abstract(RepMLP, **PLAIN, param_dtype=jnp.float64)
    assert_identical(from_torch(empty, to_torch(block)), block)


def test_every_problem_is_named_at_once():
    state_dict = to_torch(build_block(param_dtype=jnp.float32))
    del state_dict["fc3_bn.weight"]
    state_dict["head.weight"] = np.zeros(3, np.float32)
    state_dict["repconv3.conv.weight"] = np.zeros((4, 2, 5, 5), np.float32)
    state_dict["fc1_fc2.fc1.bias"] = state_dict["fc1_fc2.fc1.bias"].astype(np.float64)
    state_dict["avg.bn.num_batches_tracked"] = np.asarray(2**40)
    with pytest.raises(ValueError, match="state_dict does not fit RepMLP") as error:
        from_torch(build_block(param_dtype=jnp.float32), state_dict)
    assert str(error.value).splitlines()[1:] == [
        "  avg.bn.num_batches_tracked holds 1099511627776, the model whole numbers from 0 to 2147483647",
        "  fc1_fc2.fc1.bias holds float64, the model float32: cast one of them",
        "  repconv3.conv.weight has shape (4, 2, 5, 5), the model (4, 2, 3, 3)",
        "  missing: fc3_bn.weight",
        "  not used by the model: head.weight",
    ]


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("fc1_fc2.fc1.bias", np.ones(16, bool), "holds bool, the model float64"),
        ("fc1_fc2.fc1.bias", np.ones(16, np.int8), "holds int8, the model float64"),
        ("avg.bn.num_batches_tracked", np.asarray(True), "holds bool, the model int32"),
        ("avg.bn.num_batches_tracked", np.asarray(-(2**40)), "holds -1099511627776, the model whole numbers from 0 to"),
        ("avg.bn.num_batches_tracked", np.asarray(-1, np.int32), "holds -1, the model whole numbers from 0 to"),
        ("avg.bn.num_batches_tracked", np.asarray(2.5), "holds 2.5, the model whole numbers from 0 to 2147483647"),
        ("avg.bn.num_batches_tracked", np.asarray(np.inf, np.float16), "holds inf, the model whole numbers from 0 to"),
    ],
)
def test_values_that_would_change_are_refused(key, value, problem):
    block = build_block()
    with pytest.raises(ValueError, match=f"{key} {problem}"):
        from_torch(block, to_torch(block) | {key: value})


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float64, np.uint8])
def test_counters_may_be_other_numbers(dtype):
    block = build_block()
    other = to_torch(block) | {"avg.bn.num_batches_tracked": np.asarray(200, dtype)}
    loaded = from_torch(block, other)
    assert to_torch(loaded)["avg.bn.num_batches_tracked"] == 200
    assert to_torch(loaded)["avg.bn.num_batches_tracked"].dtype == np.int64


def test_missing_counters_are_zero():
    block = build_block()
    state_dict = to_torch(block)
    assert state_dict["avg.bn.num_batches_tracked"] > 0
    uncounted = {key: array for key, array in state_dict.items() if not key.endswith("num_batches_tracked")}
    for key, array in to_torch(from_torch(block, uncounted)).items():
        assert (array == uncounted.get(key, 0)).all()


@pytest.mark.parametrize(
    "spelled",
    [
        "module.{}",
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "_orig_mod.module.{}",
        "module.module.{}",
        "_fsdp_wrapped_module.{}",
    ],
)
def test_what_pytorchs_tools_add_to_keys_is_removed(spelled):
    block = build_block()
    found = {spelled.format(key): array for key, array in to_torch(block).items()}
    found |= {spelled.format(f"fc3.{name}"): np.zeros(1) for name in ("total_ops", "total_params")}
    found |= {
        "n_averaged": np.asarray(3),
        "steps": np.asarray(3),
        "total_ops": np.zeros(1),
        "__metadata__": {"format": "pt"},
    }
    assert_identical(from_torch(block, found), block)


def test_wrappers_inside_of_keys_are_removed_and_may_not_hide_a_second_weight():
    block = build_block()
    state_dict = to_torch(block)
    state_dict["fc3._orig_mod.weight"] = state_dict.pop("fc3.weight")
    assert_identical(from_torch(block, state_dict), block)
    with pytest.raises(ValueError, match=r"holds 'fc3.weight' twice"):
        from_torch(block, state_dict | {"fc3.weight": np.zeros(1)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("key", ["fc3.weight", "fc3_bn.running_var"])
def test_values_that_are_not_finite_are_refused(key, value):
    block = build_block()
    state_dict = to_torch(block)
    state_dict[key] = state_dict[key].copy()
    state_dict[key].flat[1] = value
    with pytest.raises(ValueError, match=rf"state_dict holds values that are NaN or infinite: {key} \(1 of"):
        from_torch(block, state_dict)


@pytest.mark.usefixtures("unchecked_types")
def test_arguments_of_another_type_are_named():
    block = build_block()
    state_dict = to_torch(block)
    for model, what in ((None, "NoneType"), ([], "list"), (b"x", "bytes"), (RepMLP, "the class RepMLP")):
        with pytest.raises(TypeError, match=f"to_torch: model must be an nnx.Module, such as RepMLP.*, not {what}"):
            to_torch(model)
        with pytest.raises(TypeError, match=f"from_torch: model must be an nnx.Module, .*, not {what}"):
            from_torch(model, state_dict)
    with pytest.raises(TypeError, match=r"a mapping of official key → array, and it is a str; load_torch_file reads"):
        from_torch(block, "weights.pth")
    with pytest.raises(TypeError, match="the keys of state_dict have to be names, and 0 is a int"):
        from_torch(block, {0: np.zeros(1)})
    with pytest.raises(TypeError, match=r"state_dict\['model'\] is not an array but a dict: if that is the state_dict"):
        from_torch(block, {"model": state_dict})
    with pytest.raises(TypeError, match=r"state_dict\['fc3.weight'\] is not an array but a NoneType"):
        from_torch(block, state_dict | {"fc3.weight": None})


def test_models_without_an_official_layout_are_refused():
    norm = nnx.LayerNorm(2, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="LayerNorm has no official PyTorch layout for bias and 1 more"):
        from_torch(norm, {})
    with pytest.raises(TypeError, match="LayerNorm has no official PyTorch layout"):
        to_torch(norm)
