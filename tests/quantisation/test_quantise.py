import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, apply, build, build_block, quick_jit, random_input
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import RepMLPNet, create_model, fuse_params, load_model, save_model
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.quantisation.quantise import dequantise_params, quantise_params, quantise_report, summed_axes
from repmlp_jax.quantisation.quantised import Int8Kernel, round_to_int8

UNKNOWN = "no kernel of FusedRepMLP, FusedRepMLPNetBlock, Conv, Linear, LinearGeneral"


def make_mlp(**options):
    small = dict(image_size=(4, 4), in_features=1, widths=(4,), partition_size=(2, 2), conv_kernels=(1, 3))
    return create_model("pure_mlp", **(small | options))


def make_net(**options):
    return RepMLPNet((1, 1), (4, 8), 5, partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2), **options)


@pytest.fixture(scope="module", params=[make_mlp, make_net], ids=["pure mlp", "repmlpnet"])
def model(request):
    """A fused model in float64."""
    return fuse_params(build(request.param))


@pytest.fixture(scope="module")
def mlp():
    return fuse_params(build(make_mlp, param_dtype=jnp.float32))


def kernels(model):
    return {path: node for path, node in nnx.iter_graph(model) if isinstance(node, Int8Kernel)}


def in_numbers(kernel):
    """A kernel's integers and scales, as NumPy's float64."""
    return tuple(np.asarray(part[...], np.float64) for part in (kernel.values, kernel.scale))


def linear(kernel, use_bias=True):
    kernel = jnp.asarray(kernel, jnp.float64)
    layer = nnx.eval_shape(
        lambda: nnx.Linear(*kernel.shape, use_bias=use_bias, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    layer.kernel = nnx.Param(kernel)
    layer.bias = nnx.data(nnx.Param(jnp.zeros(kernel.shape[1], jnp.float64)) if use_bias else None)
    return layer


def whole_numbers(shape, partition_size=None):
    """Integers from -127 to 127 of which every pixel, or partition and channel, has a 127: rounding changes nothing."""
    x = np.random.default_rng(1).integers(-127, 128, shape)
    if partition_size is None:
        x[..., 0] = 127
    else:
        x[:, :: partition_size[0], :: partition_size[1]] = 127
    return jnp.asarray(x, jnp.float64)


@pytest.fixture(scope="module")
def quantised(model):
    """It with int8 weights."""
    return quantise_params(model)


def relative_error(actual, expected):
    return float(np.linalg.norm(np.asarray(actual - expected)) / np.linalg.norm(np.asarray(expected)))


# Rounding


def test_a_kernel_by_hand():
    kernel = quantise_params(linear([[1.0, 0.0, -3.0], [-0.5, 0.0, 1.5], [0.25, 0.0, 0.01]])).kernel
    assert kernel.values.dtype == jnp.int8
    # 63.5 is rounded to 64, which is even, 31.75 to 32 and 0.42 to 0.
    assert kernel.values[...].tolist() == [[127, 0, -127], [-64, 0, 64], [32, 0, 0]]
    assert_close(kernel.scale[...][:, ::2], [[1 / 127, 3 / 127]], ROUNDING_F64)


def test_a_channel_of_zeros_stays_zero():
    quantised = quantise_params(linear([[1.0, 0.0], [2.0, 0.0]]))
    assert jnp.isfinite(quantised.kernel.scale[...]).all()
    y = quantised(jnp.ones((1, 2), jnp.float64))
    assert_close(y, [[3.0, 0.0]], 0.5 / 127)
    assert y[0, 1] == 0


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e30, 1e-36])
def test_a_weight_is_off_by_half_a_scale_at_most(dtype, size):
    array = jnp.asarray(size * np.random.default_rng(0).normal(size=(4, 5, 6)), dtype)
    values, scale = round_to_int8(array, (1, 2))
    assert values.dtype == jnp.int8
    assert scale.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    assert scale.shape == (4, 1, 1)
    exact, values, scale = (np.asarray(part, np.float64) for part in (array, values, scale))
    # Below the smallest normal number the CPU has only zero; and the quotient, itself, is rounded.
    slack = float(jnp.finfo(array.dtype).tiny) + np.abs(exact) * (2.0**-52 if dtype == jnp.float64 else 2.0**-23)
    assert (np.abs(exact - values * scale) <= scale / 2 + slack).all()
    if size / 127 > slack.min():
        assert (np.abs(values).max((1, 2)) == 127).all()


def test_a_network_s_weights_are_off_by_half_a_scale_at_most(model, quantised):
    nodes = dict(nnx.iter_graph(model))
    found = kernels(quantised)
    assert found.keys() == {path for path in nodes if path[-1:] == ("kernel",)}
    for path, kernel in found.items():
        exact, (values, scale) = np.asarray(nodes[path][...]), in_numbers(kernel)
        axes = summed_axes(nodes[path[:-1]])
        assert scale.shape == tuple(1 if axis in axes else side for axis, side in enumerate(exact.shape)), path
        assert (np.abs(exact - values * scale) <= scale / 2 * (1 + ROUNDING_F64)).all(), path
        assert (np.abs(values).max(axes) == 127).all(), path


def test_a_channel_s_size_is_no_matter():
    kernel, sizes = np.random.default_rng(0).normal(size=(8, 3)), np.array([1, 1e-3, 1e3])
    even, uneven = (in_numbers(quantise_params(linear(each)).kernel) for each in (kernel, kernel * sizes))
    assert (even[0] == uneven[0]).all()
    assert_close(uneven[1], even[1] * sizes, ROUNDING_F64)


# Weights alone


def test_weights_alone_compute_what_the_rounded_kernels_compute(model, quantised):
    again = dequantise_params(quantised)
    x = random_input(model)
    assert_close(apply(quantised, x), apply(again, x), ROUNDING_F64)
    assert nnx.graphdef(again) == nnx.graphdef(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(again))} == {jnp.dtype(jnp.float64)}


def test_the_output_of_fc3_is_off_by_no_more_than_its_inputs_allow():
    trained = build_block("one partition")
    block, x = fuse_params(trained), random_input(trained)
    groups, h, w, c, *outputs = block.kernel_by_pixel().shape
    quantised = quantise_params(block)
    _, scale = in_numbers(quantised.kernel)
    sums = np.abs(x).reshape(-1, h * w, groups, c).sum((1, 3))  # image, group
    bound = np.einsum("ng,ghwo->nhwgo", sums, scale.reshape(groups, *outputs)).reshape(x.shape) / 2
    error = np.abs(np.asarray(apply(quantised, x)) - apply(block, x))
    assert (error <= bound * (1 + ROUNDING_F64)).all()
    assert error.max() > 0


# Whole models


def test_quantised_models_are_close(model, quantised):
    x = random_input(model)
    assert 0 < relative_error(apply(quantised, x), apply(model, x)) < 0.03


def test_a_block_that_computes_in_bfloat16_still_does():
    block = build_block("one partition", dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    x = random_input(block, dtype=jnp.bfloat16)
    assert apply(quantise_params(fuse_params(block)), x).dtype == jnp.bfloat16


def test_all_of_a_residual_net():
    small = dict(stage_sizes=(1, 2, 1, 1), num_classes=5, image_size=(32, 32), partition_size=(2, 2))
    small |= dict(groups=(2, 2), widths=(16, 32, 32, 32), param_dtype=jnp.float64)

    def make():
        return fuse_params(create_model("RepMLP-Res50-bottleneck-224", **small, rngs=nnx.Rngs(0)))

    def outputs(x):
        return quantise_params(make())(x)

    report = quantise_report(nnx.eval_shape(make))
    assert {row.kept for row in report.parameters} == {None, "a bias"}
    assert jax.eval_shape(outputs, jnp.zeros((2, 32, 32, 3))) == jax.ShapeDtypeStruct((2, 5), jnp.float64)


def test_every_parameter_is_int8_or_listed(model, quantised):
    report = quantise_report(model)
    in_int8 = {".".join(map(str, path)): kernel for path, kernel in kernels(quantised).items()}
    assert in_int8.keys() == {row.path for row in report.parameters if row.kept is None}
    everything = {".".join(map(str, path)) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)}
    assert everything == {row.path for row in report.parameters}
    for row in report.parameters:
        assert row.kept in (None, "a bias", "a vector"), row
        assert row.path.endswith("kernel") == (row.kept is None), row
        if row.kept is None:
            assert in_int8[row.path].values.dtype == jnp.int8
            assert row.nbytes[1] == sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(in_int8[row.path])))
    for which, total in zip((model, quantised), report.nbytes, strict=True):
        assert total == sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(which)))


def test_the_report_as_it_is_printed(mlp):
    lines = str(quantise_report(mlp)).splitlines()
    assert lines[0].split() == ["parameter", "kind", "shape", "bytes"]
    assert lines[1].split() == ["embedding.bias", "Conv", "4", "16", "stays:", "a", "bias"]
    row = next(line for line in lines if line.startswith("stages.0.2.kernel"))
    assert row.split() == ["stages.0.2.kernel", "FusedRepMLP", "2×8×8", "512", "→", "192", "int8"]
    assert lines[-1].startswith("total")


def test_a_quarter_of_the_bytes():
    published = nnx.eval_shape(fuse_params, abstract(create_model, "pure_mlp"))
    before, after = quantise_report(published).nbytes
    assert 3.97 < before / after < 4


def test_saved_and_loaded(mlp, tmp_path):
    quantised = quantise_params(mlp)
    save_model(tmp_path / "int8", quantised)
    assert_identical(load_model(tmp_path / "int8"), quantised)
    content = (tmp_path / "int8" / "weights.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert len(content) == header + quantise_report(mlp).nbytes[1]


def test_the_output_has_the_dtype_that_the_float_layer_s_has():
    layer = build(nnx.Linear, in_features=3, out_features=2, use_bias=False, param_dtype=jnp.float32)
    x = jnp.ones((1, 3), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):
        assert quantise_params(layer)(x).dtype == layer(x).dtype == jnp.float32


def test_the_given_model_stays_as_it_is(mlp):
    before = nnx.clone(mlp)
    quantise_params(mlp)
    assert_identical(mlp, before)


def test_under_jit_eval_shape_and_vmap():
    def quantise(model):
        return quantise_params(model)

    blocks = [fuse_params(build_block("one partition", seed=seed)) for seed in range(2)]
    quantised = [quantise(block) for block in blocks]
    assert_identical(quick_jit(quantise)(blocks[0]), quantised[0])
    assert nnx.graphdef(nnx.eval_shape(quantise, blocks[0])) == nnx.graphdef(quantised[0])
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    stacked = quick_jit(jax.vmap(quantise))(stack)
    for number, one in enumerate(quantised):
        assert_identical(jax.tree.map(operator.itemgetter(number), stacked), one)


def test_what_is_shared_stays_shared():
    block, layer, tied = fuse_params(build_block("one partition")), linear(np.eye(4)), linear(np.eye(4))
    tied.kernel = layer.kernel
    quantised = quantise_params(nnx.Sequential(block, layer, block, tied))
    assert quantised.layers[0] is quantised.layers[2]
    assert quantised.layers[1].kernel is quantised.layers[3].kernel


def test_a_quantised_model_cannot_be_trained(mlp):
    graphdef, parameters = nnx.split(quantise_params(mlp))
    with pytest.raises(TypeError, match="int8"):
        jax.grad(lambda parameters: nnx.merge(graphdef, parameters)(jnp.zeros((1, 4, 4, 1))).sum())(parameters)


# What is refused, and what is said


def test_only_models_in_int8_are_made_floating_point_again(mlp):
    with pytest.raises(ValueError, match="takes only models of quantise_params"):
        dequantise_params(mlp)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("thing", [None, {"kernel": 1}, jnp.zeros(3)])
@pytest.mark.parametrize("function", [quantise_params, quantise_report])
def test_only_modules_can_be_quantised(function, thing):
    with pytest.raises(
        TypeError, match=rf"{function.__name__}: model must be an nnx.Module, such as .*, not {type(thing).__name__}"
    ):
        function(thing)


@pytest.mark.parametrize("function", [quantise_params, quantise_report])
def test_a_model_that_is_not_fused_is_refused(function):
    message = r"in this PureMLP 5 modules can still be fused, the first embedding \(ConvBN\): call fuse_params first"
    with pytest.raises(ValueError, match=message):
        function(abstract(make_mlp))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_broken_weights_are_named(mlp, value):
    broken = nnx.clone(mlp)
    kernel = broken.stages[0][2].kernel
    kernel[...] = kernel[...].at[0, :2].set(value)
    message = r"cannot quantise: PureMLP holds values that are NaN or infinite: stages\.0\.2\.kernel \(16 of 128\)"
    with pytest.raises(ValueError, match=message):
        quantise_params(broken)


class Scorer(nnx.Module):
    """What a user may write: a matrix that no layer holds, and one that is a layer's and something else, too."""

    def __init__(self):
        self.matrix = nnx.Param(jnp.ones((3, 2), jnp.float64))
        self.factor = nnx.Param(jnp.ones((2,), jnp.float64))
        self.layers = nnx.List([linear(np.ones((2, 3)))])
        self.norm = nnx.BatchNorm(3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        self.table = self.layers[0].kernel


def test_a_matrix_that_stays_is_named():
    with pytest.warns(UserWarning, match=f"what stays in floating point is {UNKNOWN}: matrix, table$"):
        quantised = quantise_params(Scorer())
    assert isinstance(quantised.layers[0].kernel, Int8Kernel)
    assert {row.path: row.kept for row in quantise_report(Scorer()).parameters} == {
        "factor": "a vector",
        "layers.0.bias": "a bias",
        "layers.0.kernel": None,
        "matrix": UNKNOWN,
        "norm.bias": "a vector",
        "norm.scale": "a vector",
    }


class Sparse(FusedRepMLP):
    """Derived from a block: what it does with its kernel is not known."""


def test_a_class_derived_from_a_block_stays_and_is_named():
    block = fuse_params(build_block())
    derived = Sparse(block.partitioning, 4, block.global_perceptron, block.kernel[...], block.bias[...], None)
    with pytest.warns(UserWarning, match=f"what stays in floating point is {UNKNOWN}: kernel$"):
        quantised = quantise_params(derived)
    assert isinstance(quantised, Sparse)
    assert isinstance(quantised.global_perceptron.fc1.kernel, Int8Kernel)


def test_quantising_twice_changes_nothing_and_says_so(mlp):
    quantised = quantise_params(mlp)
    message = f"nothing to quantise: PureMLP has {UNKNOWN} that is not int8 already"
    with pytest.warns(UserWarning, match=message):
        assert_identical(quantise_params(quantised), quantised)
    kept = {row.kept for row in quantise_report(quantised).parameters}
    assert kept == {"a bias", "quantised already"}


def test_a_model_with_nothing_to_quantise_warns():
    with pytest.warns(UserWarning, match="nothing to quantise: BatchNorm has no kernel"):
        quantise_params(BatchNorm(3))
