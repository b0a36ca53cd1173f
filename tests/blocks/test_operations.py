import functools
import re
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import pytest
from cases import quick_jit, random_array
from flax import nnx
from jax import lax
from tolerance import ROUNDING_F64, assert_close, assert_identical, assert_trees_close

import repmlp_jax
from repmlp_jax.blocks.layers import conv
from repmlp_jax.blocks.operations import (
    computed_once,
    convolve_parts,
    convolve_rows,
    grouped_convolution,
    halve,
    max_pool,
    stored,
)
from repmlp_jax.blocks.sharesets import convolve_sharesets, multiply_sharesets
from repmlp_jax.blocks.split_maps import convolve_partitions, join, multiply_groups, multiply_pixels, split
from repmlp_jax.fusing.one_platform import as_compiled_for


def random(seed, *shape):
    return jnp.asarray(random_array(*shape, seed=seed))


def value_and_gradients(function, *arguments):
    """The result and the gradients of a sum of its squares, which weighs every output differently."""

    def weighed(*inner):
        y = function(*inner)
        return jnp.square(y).sum(), y

    return quick_jit(jax.grad(weighed, argnums=tuple(range(len(arguments))), has_aux=True))(*arguments)


def assert_as_lax(x, kernel, *, strides, **options):
    """Asserts that our convolution and its gradients are those of `lax`."""

    def ours(x, kernel):
        return grouped_convolution(x, kernel, strides=strides, **options)

    def reference(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)

    found, expected = (value_and_gradients(function, x, kernel) for function in (ours, reference))
    assert_trees_close(found, expected, ROUNDING_F64)


CONVOLUTIONS = {
    # name: height, width, channels, outputs, (kh, kw), groups
    "narrow partition": (8, 8, 4, 6, (3, 3), 2),
    "kernel exceeds the map": (3, 5, 4, 4, (7, 9), 2),
    "flat kernel": (4, 6, 4, 4, (1, 3), 2),
    "one pixel kernel in groups": (4, 6, 4, 8, (1, 1), 2),
    "one pixel kernel": (4, 6, 3, 8, (1, 1), 1),
    "wide row": (2, 80, 4, 4, (3, 3), 2),
    "groups are channels": (4, 4, 4, 4, (3, 3), 4),
    "no groups": (4, 4, 3, 5, (3, 3), 1),
    "fewer outputs": (5, 6, 6, 3, (3, 5), 3),
}


@pytest.mark.parametrize("strides", [(1, 1), pytest.param((2, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_every_way_to_convolve_gives_what_lax_gives(case, strides):
    height, width, channels, outputs, sides, groups = case
    x, kernel = random(0, 2, height, width, channels), random(1, *sides, channels // groups, outputs)
    padding = tuple((side // 2, side // 2) for side in sides)
    assert_as_lax(x, kernel, strides=strides, padding=padding, feature_group_count=groups)


WINDOWS = {
    # name: height, width, (kh, kw), strides
    "patches": (8, 12, (4, 4), (4, 4)),
    "every second pixel of an odd map": (5, 7, (1, 1), (2, 2)),
    "gaps and a rest": (9, 11, (2, 1), (3, 2)),
    "one window": (3, 2, (3, 2), (4, 4)),
}


@pytest.mark.parametrize("case", WINDOWS.values(), ids=WINDOWS)
def test_windows_that_do_not_overlap_are_multiplied(case):
    height, width, sides, strides = case
    x, kernel = random(0, 2, height, width, 3), random(1, *sides, 3, 5)
    options = dict(strides=strides, padding=((0, 0), (0, 0)), feature_group_count=1)
    program = jax.make_jaxpr(as_compiled_for("cpu", functools.partial(grouped_convolution, **options)))(x, kernel)
    assert "conv_general_dilated" not in str(program)
    assert_as_lax(x, kernel, **options)


def test_of_no_images_come_no_windows():
    kernel = jnp.zeros((2, 2, 3, 5), jnp.float32)
    options = dict(strides=(2, 2), padding=((0, 0), (0, 0)), feature_group_count=1)
    assert grouped_convolution(jnp.zeros((0, 4, 6, 3), jnp.float32), kernel, **options).shape == (0, 2, 3, 5)


@pytest.mark.parametrize("changed", [dict(strides=2), dict(kernel_dilation=2), dict(input_dilation=2)], ids=str)
@pytest.mark.parametrize(("side", "groups"), [(3, 2), (1, 1)])
def test_strides_and_dilations_are_not_taken_for_plain(side, groups, changed):
    layer = conv(4, 4, side, feature_group_count=groups, **changed, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = random(0, 2, 8, 8, 4)
    found = layer(x)
    layer.conv_general_dilated = lax.conv_general_dilated
    assert_close(found, layer(x), ROUNDING_F64)


def test_convolve_rows_of_one_row_and_one_column():
    for shape in ((1, 6), (6, 1)):
        x, kernel = random(0, 2, *shape, 3), random(1, 3, 3, 3, 2)
        expected = lax.conv(x.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME")
        assert_close(convolve_rows(x, kernel), expected.transpose(0, 2, 3, 1), ROUNDING_F64)


@pytest.mark.parametrize(("rows", "inner"), [(1, 8), (1, 6), (3, 8)], ids=["split", "not divisible", "many rows"])
def test_groups_are_multiplied_by_the_matrix_of_each(rows, inner):
    x, kernel = random(0, 2, rows, 1, inner), random(1, 2, inner, 5)
    expected = value_and_gradients(lambda x, kernel: x @ kernel[:, None], x, kernel)
    assert_trees_close(value_and_gradients(multiply_groups, x, kernel), expected, ROUNDING_F64)


def in_groups(x, kernel):
    return grouped_convolution(x, kernel, strides=(1, 1), padding=((1, 1), (1, 1)), feature_group_count=2)


def patches(x, kernel):
    return grouped_convolution(x, kernel, strides=(2, 2), padding=((0, 0), (0, 0)), feature_group_count=1)


FORMS = {
    # name: operation, the shapes that it takes, and what its program holds on the CPU alone and elsewhere alone
    "convolution in groups": (
        in_groups,
        [(2, 8, 8, 4), (3, 3, 2, 4)],
        "stablehlo.concatenate",
        "feature_group_count = 2",
    ),
    "patches": (patches, [(2, 4, 6, 3), (2, 2, 3, 5)], "stablehlo.dot_general", "stablehlo.convolution"),
    "max pool": (max_pool, [(2, 5, 6, 3)], "stablehlo.slice", "stablehlo.reduce_window"),
    "computed once": (computed_once, [(3, 4)], "stablehlo.divide", None),
    "product of one row": (multiply_groups, [(2, 1, 1, 8), (2, 8, 5)], "stablehlo.reduce", None),
    "share-sets": (multiply_sharesets, [(2, 1, 4, 6), (3, 4, 4)], None, None),
    "convolution with share-sets": (convolve_sharesets, [(2, 4, 4, 6), (3, 3, 1, 3)], None, "feature_group_count = 6"),
}
BY_ORDER = {
    "split": (lambda x: split(x, (2, 3), (2, 2), 2), [(8, 4, 6, 4)]),
    "join": (lambda x: join(x, (2, 3), (2, 2)), [(32, 6, 4, 2, 2)]),
    "stored": (lambda x: stored(x, 512), [(8, 2, 2, 3)]),
    "products": (multiply_groups, [(2, 8, 4, 8), (2, 8, 5)]),
    "pixels": (multiply_pixels, [(8, 3, 4, 2, 3), (6, 8)]),
    "partitions": (lambda x, kernel: convolve_partitions(x, kernel, (2, 2)), [(8, 3, 4, 2, 3), (3, 5, 3, 8)]),
    "parts": (
        lambda one, other, kernel: convolve_parts((one, other), kernel),
        [(2, 4, 5, 3), (2, 4, 5, 2), (3, 3, 5, 4)],
    ),
    "parts of other sizes": (
        lambda *operands: convolve_parts(operands[:-1], operands[-1]),
        [(2, 7, 5, 3), (2, 1, 2, 2), (2, 3, 3, 2), (3, 5, 7, 4)],
    ),
    "pixels of groups": (lambda x, kernel: convolve_partitions(x, kernel, (2, 2)), [(8, 3, 4, 2, 3), (1, 1, 3, 8)]),
}
every_form = pytest.mark.parametrize(("operation", "shapes", "on_cpu", "elsewhere"), FORMS.values(), ids=FORMS)


@every_form
def test_the_form_for_accelerators_gives_the_same_and_so_do_its_gradients(operation, shapes, on_cpu, elsewhere):
    operands = [random(number, *shape) for number, shape in enumerate(shapes)]
    expected = value_and_gradients(operation, *operands)
    for platform in ("cuda", "tpu"):
        form = as_compiled_for(platform, operation)
        assert str(jax.make_jaxpr(form)(*operands)) != str(jax.make_jaxpr(as_compiled_for("cpu", operation))(*operands))
        assert_trees_close(value_and_gradients(form, *operands), expected, ROUNDING_F64)


@pytest.mark.parametrize(("operation", "shapes"), BY_ORDER.values(), ids=BY_ORDER)
def test_the_other_form_gives_the_same_and_so_do_its_gradients(operation, shapes):
    operands = [random(number, *shape) for number, shape in enumerate(shapes)]
    form = as_compiled_for("tpu", operation)
    assert str(jax.make_jaxpr(form)(*operands)) != str(jax.make_jaxpr(as_compiled_for("cpu", operation))(*operands))
    assert_trees_close(value_and_gradients(form, *operands), value_and_gradients(operation, *operands), ROUNDING_F64)


@every_form
def test_the_form_is_that_of_the_platform_that_is_compiled_for(operation, shapes, on_cpu, elsewhere):
    """Whatever the process runs on: this one has nothing but a CPU."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    texts = {
        platform: jax.jit(operation).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    for platform, text in texts.items():
        assert on_cpu is None or (on_cpu in text) == (platform == "cpu")
        assert elsewhere is None or (elsewhere in text) == (platform != "cpu")
    module = jax.export.export(jax.jit(operation), platforms=("cpu", "cuda", "tpu"))(*arrays).mlir_module()
    assert on_cpu is None or on_cpu in module
    assert elsewhere is None or elsewhere in module


@every_form
def test_a_jitted_function_may_be_differentiated_from_outside(operation, shapes, on_cpu, elsewhere):
    """The choice is not handed on as a number: on the CPU that took 20 times as long, and gave other bits."""
    operands = [random(number, *shape) for number, shape in enumerate(shapes)]

    def loss(*operands):
        return jnp.square(operation(*operands)).sum()

    places = tuple(range(len(shapes)))
    from_outside = jax.jit(jax.grad(jax.jit(loss), places))
    assert "conditional(" not in from_outside.lower(*operands).compile().as_text()
    expected = jax.jit(jax.grad(loss, places))(*operands)
    for found in (from_outside(*operands), jax.grad(jax.jit(loss), places)(*operands)):
        assert_identical(found, expected)


def test_nothing_in_the_package_asks_what_the_process_runs_on():
    package = Path(repmlp_jax.__file__).parent
    assert not [path for path in package.rglob("*.py") if "default_backend" in path.read_text()]


def test_a_choice_within_a_loop_is_not_resolved():
    def loop(x):
        return lax.scan(lambda x, _: (computed_once(x), None), x, length=3)[0]

    with pytest.raises(NotImplementedError, match="a choice by platform within scan is not resolved"):
        as_compiled_for("cpu", loop)(random(0, 2))


def test_halve_is_max_pooling():
    x = random(0, 2, 4, 6, 3)

    def pool(x):
        return nnx.max_pool(x, (2, 2), (2, 2))

    found, expected = (value_and_gradients(function, x) for function in (halve, pool))
    assert_trees_close(found, expected, ROUNDING_F64)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 1)], ids=["even", "odd", "one pixel"])
def test_max_pool_is_that_of_a_window(size):
    x = random(0, 2, *size, 3)

    def pool(x):
        return nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))

    found, expected = (value_and_gradients(function, x) for function in (max_pool, pool))
    assert_trees_close(found, expected, ROUNDING_F64)


def test_computed_once_changes_nothing():
    x = jnp.array([0.0, -0.0, 1e-310, 1.5, jnp.inf, -jnp.inf, jnp.nan], jnp.float32)
    found, tangent = jax.jvp(computed_once, (x,), (x,))
    for array in (computed_once(x), found, tangent):
        assert_identical(array, x)
    assert_identical(jax.vmap(jax.grad(lambda x: 2 * computed_once(x)))(x[:6]), jnp.full(6, 2, jnp.float32))


def test_a_chain_of_residual_blocks_is_not_computed_anew_in_each():
    def most_inputs_of_a_loop(blocks):
        def loss(kernels, x):
            for kernel in kernels:
                x = computed_once(x + (x - x.mean(0, keepdims=True)) @ kernel)
            return x.sum()

        kernels, x = [jnp.zeros((8, 8), jnp.float32)] * blocks, jnp.zeros((16, 8), jnp.float32)
        program = jax.jit(jax.grad(loss, (0, 1))).lower(kernels, x).compile().as_text()
        loops = re.findall(r" fusion\((.*?)\), kind=kLoop", program)
        return max(inputs.count("%") for inputs in loops)

    assert most_inputs_of_a_loop(12) == most_inputs_of_a_loop(4)
