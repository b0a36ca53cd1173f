import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from repmlp_jax.storage.digest import describe, digests

DTYPES = [
    "bool", "int8", "uint8", "int16", "int32", "uint32", "int64", "float8_e4m3fn", "float16", "bfloat16",
    "float32", "float64", "complex64", "complex128",
]  # fmt: skip


def array_of(dtype):
    return jnp.asarray(np.random.default_rng(0).integers(0, 2, (8, 6))).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_changed_element_changes_the_digest(dtype):
    array = array_of(dtype)
    changed = [array.at[i].set((array[i] == array.dtype.type(0)).astype(dtype)) for i in np.ndindex(2, 3)]
    assert len({digests(x)[""] for x in [array, *changed]}) == 7


@pytest.mark.parametrize("dtype", ["bool", "bfloat16", "float64", "complex64"])
@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_the_digest_does_not_depend_on_the_sharding(dtype, axis_type):
    array = array_of(dtype)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    for spec in [("x", "y"), (("x", "y"), None)]:
        assert digests(jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))) == digests(array)


def test_bits_count_not_values():
    nan = jnp.asarray([0x7FC00000, 0x7FC00001], jnp.uint32).view(jnp.float32)
    assert digests(jnp.float32(0.0)) == digests(jnp.float32(0.0)) != digests(jnp.float32(-0.0))
    assert digests(nan[:1]) != digests(nan[1:])


def test_swapped_elements_and_keys_are_seen():
    array = jnp.arange(6.0)
    assert digests(array) != digests(array[::-1])
    keys = jax.random.split(jax.random.key(0), 8)
    assert digests(keys) != digests(keys[::-1])
    mesh = jax.make_mesh((8,), ("x",))
    assert digests(jax.device_put(keys, NamedSharding(mesh, PartitionSpec("x")))) == digests(keys)


def test_leaves_are_named_and_described():
    tree = {"a": [jnp.zeros((2, 3), jnp.bfloat16)], "key": jax.random.key(0)}
    assert describe(tree) == {"a/0": "bfloat16[2,3]", "key": "key<fry>[]"}
    assert describe(jax.eval_shape(lambda: tree)) == describe(tree)
    assert list(digests(tree)) == list(describe(tree))
    assert digests({}) == {}
