import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, quick_jit
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from tolerance import ROUNDING_F64, assert_close

from repmlp_jax import create_model, from_torch, load_model, save_model, to_torch
from repmlp_jax.blocks.initializers import (
    FEWEST_DRAWN,
    classifier_init,
    constant,
    fc3_init,
    kernel_init,
    shared_kernel_init,
)

SHAPES = {"one number": (1, 1), "a convolution": (3, 5, 2, 7), "more than a power of two": (1, 2, FEWEST_DRAWN + 1)}
KERNELS = (4, 15, 15)  # of share-sets


def official_shared(key, shape, dtype):
    axes = dict(in_axis=1, out_axis=2, batch_axis=0)
    return nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform", **axes)(key, shape, dtype)


SAME = [
    *((kernel_init, nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), shape) for shape in SHAPES.values()),
    *((classifier_init, nnx.initializers.lecun_normal(), shape) for shape in SHAPES.values()),
    (shared_kernel_init, official_shared, KERNELS),
]


def key(seed=3):
    return jax.random.key(seed)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("ours", "theirs", "shape"), SAME)
def test_the_weights_are_those_of_flax_bit_for_bit(ours, theirs, shape, dtype):
    found = ours(key(), shape, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, theirs(key(), shape, dtype))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("c", "o"), [(8, 8), (8, 16), (16, 2)], ids=["square", "more outputs", "fewer outputs"])
def test_fc3_is_orthogonal_as_flax_draws_it(groups, c, o):
    kernel = fc3_init(key(), (groups, 6 * c // 4, 6 * o // 2), jnp.float64)
    matrix = np.moveaxis(np.asarray(kernel), 1, 2).reshape(-1, 6 * c // 4)
    np.testing.assert_array_equal(matrix, nnx.initializers.orthogonal()(key(), matrix.shape, jnp.float64))
    gram = matrix.T @ matrix if matrix.shape[0] >= matrix.shape[1] else matrix @ matrix.T
    assert_close(gram, np.eye(len(gram)), ROUNDING_F64)


INITIALIZERS = {
    "kernel": (kernel_init, (3, 5, 2, 7)),
    "classifier": (classifier_init, (5, 70)),
    "share-sets": (shared_kernel_init, KERNELS),
    "fc3": (fc3_init, (2, 12, 24)),
}
every_initializer = pytest.mark.parametrize(("initialise", "shape"), INITIALIZERS.values(), ids=INITIALIZERS)


@every_initializer
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_are_drawn_in_float32_and_rounded_once(initialise, shape, dtype):
    found = initialise(key(), shape, dtype)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, initialise(key(), shape, jnp.float32).astype(dtype))


@every_initializer
def test_traced_they_are_the_same(initialise, shape):
    expected = initialise(key(), shape, jnp.float64)
    assert_close(quick_jit(lambda key: initialise(key, shape, jnp.float64))(key()), expected, ROUNDING_F64)
    keys = jax.random.split(key(), 3)
    stacked = jax.vmap(lambda key: initialise(key, shape, jnp.float64))(keys)
    assert_close(stacked[2], initialise(keys[2], shape, jnp.float64), ROUNDING_F64)
    assert jax.eval_shape(lambda: initialise(key(), shape, jnp.bfloat16)).shape == shape
    assert_close(jax.jit(lambda: initialise(keys[2], shape, jnp.float64))(), stacked[2], ROUNDING_F64)


@every_initializer
def test_other_random_numbers_do_not_begin_with_the_shorter_draw(initialise, shape):
    """They are drawn for each shape by itself, and are what a traced function draws, whose shape it always is."""

    with jax.threefry_partitionable(False):
        expected = quick_jit(lambda key: initialise(key, shape, jnp.float64))(key())
        assert_close(initialise(key(), shape, jnp.float64), expected, ROUNDING_F64)
    other = jax.random.key(3, impl="rbg")
    expected = quick_jit(lambda key: initialise(key, shape, jnp.float64))(other)
    assert_close(initialise(other, shape, jnp.float64), expected, ROUNDING_F64)
    old = jax.random.PRNGKey(3)
    assert_close(initialise(old, shape, jnp.float64), initialise(key(), shape, jnp.float64), ROUNDING_F64)


def compiled_by(function) -> list[str]:
    """The names of the functions that are compiled during a call."""
    names = []

    def listen(event, _, fun_name=None, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        function()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return names


def test_one_program_serves_many_shapes():
    kernel_init(key(), (1,))
    constant(0, (), jnp.float32)

    def draw():
        for size in range(2, 50):
            kernel_init(key(), (size, size))
            constant(1, (size,), jnp.float32)

    assert compiled_by(draw) == []
    longer = (3 * FEWEST_DRAWN + 5, 1)
    kernel_init(key(), longer)
    assert compiled_by(lambda: kernel_init(key(), (2 * FEWEST_DRAWN + 1, 1))) == []


def test_they_lie_on_the_default_device_and_are_the_same_on_each():
    second = jax.devices()[1]
    expected = kernel_init(key(), (4, 4))
    with jax.default_device(second):
        found = kernel_init(key(), (4, 4))
    assert (found.device, found.committed) == (second, False)
    np.testing.assert_array_equal(found, expected)


@every_initializer
def test_they_are_the_same_on_one_and_on_eight_devices(initialise, shape):
    mesh = jax.make_mesh((8,), ("fsdp",))
    sharded = (*shape[:-1], 8 * shape[-1])
    split = NamedSharding(mesh, PartitionSpec(*[None] * (len(shape) - 1), "fsdp"))
    found = quick_jit(lambda key: initialise(key, sharded, jnp.float64), out_shardings=split)(key())
    assert len(found.sharding.device_set) == 8
    assert_close(found, initialise(key(), sharded, jnp.float64), ROUNDING_F64)


@pytest.fixture
def nothing_may_be_drawn(monkeypatch):
    """What reads weights from a file has no use for initial ones."""

    def fail(*_, **__):
        raise AssertionError("weights were drawn")

    def draw(sample, key, shape, scale):
        assert isinstance(key, jax.core.Tracer), "weights were drawn"
        return jnp.zeros(shape, scale.dtype)

    monkeypatch.setattr("repmlp_jax.blocks.initializers._draw", draw)
    for name in ("uniform", "normal", "truncated_normal"):
        monkeypatch.setattr(jax.random, name, fail)


TINY = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))


def test_loading_draws_nothing(tmp_path, request):
    save_model(tmp_path / "model", create_model("pure_mlp", rngs=nnx.Rngs(0), **TINY))
    request.getfixturevalue("nothing_may_be_drawn")
    load_model(tmp_path / "model")


def test_official_weights_need_no_drawn_ones(request):
    tiny = dict(stage_sizes=(1,), widths=(4,), partition_sizes=((2, 2),), sharesets=(2,), num_classes=3)
    state_dict = to_torch(create_model("RepMLPNet-T224", rngs=nnx.Rngs(0), **tiny))
    request.getfixturevalue("nothing_may_be_drawn")
    model = abstract(create_model, "RepMLPNet-T224", **tiny)
    assert to_torch(from_torch(model, state_dict)).keys() == state_dict.keys()
