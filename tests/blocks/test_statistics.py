import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import random_array
from flax import nnx
from jax import export
from jax.sharding import AxisType, NamedSharding, PartitionSpec, use_abstract_mesh
from tolerance import ROUNDING_BF16, ROUNDING_F32, ROUNDING_F64, assert_close, assert_trees_close

from repmlp_jax.blocks import statistics
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.blocks.statistics import mean_and_variance
from repmlp_jax.fusing.one_platform import as_compiled_for

DEVICES = 8
MESH = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
# Makes the matrix by which devices exchange their means.
IDENTITY = "iota"
# Of a batch of images, of FC3's outputs (groups first), of RepMLPNet's share-sets, and of one share-set.
CASES = [
    ((16, 3, 5, 4), (0, 1, 2)),
    ((2, 32, 3, 3, 4), (1,)),
    ((3, 24, 5, 5), (1, 2, 3)),
    ((1, 24, 2, 2), (0, 1, 2, 3)),
]


def on_devices(function, batch):
    """The function of a batch that is split over the devices, compiled for them."""

    def within(*arrays):
        with use_abstract_mesh(MESH.abstract_mesh):
            return function(*arrays)

    split = NamedSharding(MESH, PartitionSpec(*[None] * batch, MESH.axis_names))
    return jax.jit(within, in_shardings=split)


def values(shape, batch, seed=0):
    """Normal random values around means that differ from device to device."""
    rng = np.random.default_rng(seed)
    of_devices = rng.normal(size=[DEVICES if axis == batch else 1 for axis in range(len(shape))])
    return rng.normal(size=shape) + 3 * of_devices.repeat(shape[batch] // DEVICES, batch)


def zeros(x, axes):
    """A guess of the mean."""
    return jnp.zeros([1 if axis in axes else size for axis, size in enumerate(x.shape)], x.dtype)


@pytest.mark.parametrize(("shape", "axes"), CASES)
def test_of_parts_they_are_those_of_the_whole_and_so_are_their_gradients(shape, axes):
    batch = next(axis for axis in axes if shape[axis] > 1)

    def loss(x):
        mean, variance = mean_and_variance(x, axes, zeros(x, axes))
        return jnp.sin(mean).sum() + jnp.exp(-variance).sum(), (mean, variance)

    def with_derivatives(x, tangent):
        return jax.jvp(jax.grad(loss, has_aux=True), (x,), (tangent,))

    x, tangent = values(shape, batch), values(shape, batch, seed=1)
    of_parts = on_devices(with_derivatives, batch)
    assert IDENTITY in str(jax.make_jaxpr(of_parts)(x, tangent))
    (gradient, (mean, variance)), (curvature, changes) = of_parts(x, tangent)
    assert_close(mean, x.mean(axes, keepdims=True), ROUNDING_F64)
    assert_close(variance, x.var(axes, keepdims=True), ROUNDING_F64)
    (expected, _), (expected_curvature, expected_changes) = jax.jit(with_derivatives)(x, tangent)
    assert_close(gradient, expected, ROUNDING_F64)
    assert_close(curvature, expected_curvature, ROUNDING_F64)
    assert_trees_close(changes, expected_changes, ROUNDING_F64)


@pytest.mark.parametrize("mean", [0, 1000])
def test_in_float32_the_first_step_normalises_what_lies_far_from_zero(mean):
    x = (np.random.default_rng(0).normal(size=(64, 5, 5, 7)) + mean).astype(np.float32)

    def first_step(x):
        norm = BatchNorm(7)
        return norm(x), norm.var[...]

    y, running = on_devices(first_step, 0)(x)
    exact = x.astype(np.float64)
    # Means are rounded to 2^-24 of themselves, and deviations with them; sums of squares would be off by 0.06 here.
    tolerance = ROUNDING_F32 + 8 * mean * 2**-24
    assert_close(y, (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5), tolerance, scale=1)
    assert_close(running, 0.9 + 0.1 * exact.var((0, 1, 2), ddof=1), tolerance)


@pytest.mark.parametrize(("mean", "near"), [(0, 0), (30, 0), (30, 29.5), (0, 30)])
def test_accelerators_read_bfloat16_once_and_find_the_same(mean, near):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 5, 5, 7)) + mean, jnp.bfloat16)

    def loss(x):
        found = mean_and_variance(x, (0, 1, 2), jnp.full((1, 1, 1, 7), near, jnp.float32))
        return jnp.sin(found[0]).sum() + jnp.exp(-found[1]).sum(), found

    with_gradient = jax.grad(loss, has_aux=True)
    gradient, found = jax.jit(as_compiled_for("tpu", with_gradient))(x)
    exact = np.asarray(x, np.float64)
    # Squares about the guess are rounded to 2^-24 of themselves.
    tolerance = ROUNDING_F32 + 4 * (mean - near) ** 2 * 2**-24
    assert_close(found[0], exact.mean((0, 1, 2), keepdims=True), tolerance, scale=1)
    assert_close(found[1], exact.var((0, 1, 2), keepdims=True), tolerance, scale=1)
    assert found[1].dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    expected, _ = jax.jit(with_gradient)(x)
    assert_close(gradient, expected, ROUNDING_BF16)


def test_a_variance_that_rounding_makes_negative_is_zero():
    x, near = jnp.full((1000, 1), 3.140625, jnp.bfloat16), jnp.full((1, 1), 1e-3, jnp.float32)
    _, variance = jax.jit(as_compiled_for("tpu", lambda x: mean_and_variance(x, (0,), near)))(x)
    assert 0 <= variance[0, 0] < 1e-4


def test_in_a_stack_each_norm_has_its_own():
    x = values((3, 16, 4), 1)

    @nnx.vmap
    def statistics_of(x):
        return mean_and_variance(x, (0,), zeros(x, (0,)))

    mean, variance = on_devices(statistics_of, 1)(x)
    assert_close(mean, x.mean(1, keepdims=True), ROUNDING_F64)
    assert_close(variance, x.var(1, keepdims=True), ROUNDING_F64)


@pytest.mark.parametrize(
    ("batch", "largest", "mesh"),
    [
        (12, 2**17, MESH),
        (16, 8 * 4 - 1, MESH),
        (16, 2**17, jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])),
        (16, 2**17, jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))),
    ],
    ids=["a batch that devices do not divide", "a large message", "one device", "a mesh with explicit shardings"],
)
def test_without_parts_nothing_is_exchanged(monkeypatch, batch, largest, mesh):
    monkeypatch.setattr(statistics, "LARGEST_EXCHANGE", largest)

    def statistics_of(x):
        with use_abstract_mesh(mesh.abstract_mesh):
            return mean_and_variance(x, (0,), zeros(x, (0,)))

    x = jax.ShapeDtypeStruct((batch, 4), jnp.float32)
    assert IDENTITY not in str(jax.make_jaxpr(statistics_of)(x))


def test_the_statistics_of_a_batch_of_any_size_are_exported():
    (batch,) = export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((batch, 3, 4), jnp.float32)
    program = export.export(jax.jit(lambda x: mean_and_variance(x, (0, 1), zeros(x, (0, 1)))))(x)
    x = jnp.asarray(random_array(5, 3, 4), jnp.float32)
    for found, expected in zip(program.call(x), (x.mean((0, 1)), x.var((0, 1))), strict=True):
        assert_close(found[0, 0], expected, ROUNDING_F32)
