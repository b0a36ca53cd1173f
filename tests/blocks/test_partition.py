import itertools
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from repmlp_jax import RepMLPNetBlock
from repmlp_jax.blocks.partition import Partitioning


def maps(height, width, features=3, batch=2, dtype=jnp.float32):
    return jnp.arange(batch * height * width * features).reshape(batch, height, width, features).astype(dtype)


SIZES = [((6, 6), (3, 3)), ((8, 6), (2, 3)), ((6, 4), (6, 2)), ((5, 7), (5, 7)), ((3, 2), (1, 1))]


@pytest.mark.parametrize(("image_size", "partition_size"), SIZES)
def test_join_is_the_inverse_of_split(image_size, partition_size):
    partitioning = Partitioning(image_size, partition_size)
    x = maps(*image_size)
    partitions = partitioning.split(x)
    assert partitions.shape == (2, math.prod(partitioning.counts), math.prod(partition_size), 1, 3)
    np.testing.assert_array_equal(partitioning.join(partitions), x)


def test_split_cuts_where_slicing_does():
    partitioning = Partitioning((8, 6), (2, 3))
    x = maps(8, 6)
    partitions = partitioning.split(x).reshape(2, 4, 2, 2, 3, 3)
    for i, j in np.ndindex(4, 2):
        np.testing.assert_array_equal(partitions[:, i, j], x[:, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3])


def test_a_map_of_one_partition_is_itself():
    x = maps(4, 5)
    np.testing.assert_array_equal(Partitioning((4, 5), (4, 5)).split(x).reshape(x.shape), x)


def test_padding_adds_zeros_at_the_bottom_and_right_and_join_crops_them():
    partitioning = Partitioning((5, 7), (3, 4), pad=True)
    x = maps(5, 7)
    partitions = partitioning.split(x).reshape(2, 2, 2, 3, 4, 3)
    assert partitioning.counts == (2, 2)
    np.testing.assert_array_equal(partitions[:, 1, :, 2], 0)
    np.testing.assert_array_equal(partitions[:, :, 1, :, 3], 0)
    assert partitions.sum() == x.sum()
    np.testing.assert_array_equal(partitioning.join(partitioning.split(x)), x)


def test_padding_makes_a_map_smaller_than_its_partition_whole():
    partitioning = Partitioning((2, 3), (4, 4), pad=True)
    x = maps(2, 3)
    np.testing.assert_array_equal(partitioning.join(partitioning.split(x)), x)


def test_lists_and_tuples_make_equal_partitionings():
    assert Partitioning([6, 6], [3, 3]) == Partitioning((6, 6), (3, 3))
    assert hash(Partitioning([6, 6], [3, 3])) == hash(Partitioning((6, 6), (3, 3)))


@pytest.mark.parametrize(
    ("image_size", "partition_size", "suggested"),
    [
        ((15, 20), (7, 7), [[14, 21], [14, 21], [5, 15], [5, 10]]),
        ((14, 20), (7, 7), [[14], [14, 21], [7], [5, 10]]),
        ((5, 5), (7, 3), [[7], [3, 6], [5], [1, 5]]),
    ],
)
def test_partitions_that_do_not_divide_are_refused_with_sizes_that_work(image_size, partition_size, suggested):
    with pytest.raises(ValueError, match="does not divide image_size") as error:
        Partitioning(image_size, partition_size)
    text = str(error.value)
    assert str(image_size) in text
    assert str(partition_size) in text
    lists = [[int(n) for n in numbers.split(",")] for numbers in re.findall(r"\[([\d, ]+)\]", text)]
    assert lists == suggested
    for size in itertools.product(*lists[:2]):
        Partitioning(size, partition_size)
    for size in itertools.product(*lists[2:]):
        Partitioning(image_size, size)
    Partitioning(image_size, partition_size, pad=True)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("size", [(0, 4), (-4, 4), (4,), (4, 4, 4), (4.0, 4)])
@pytest.mark.parametrize("name", ["image_size", "partition_size"])
def test_sizes_are_two_positive_integers(name, size):
    with pytest.raises(ValueError, match=rf"{name} must be \(height, width\)") as error:
        Partitioning(**{"image_size": (4, 4), "partition_size": (4, 4), name: size})
    assert str(size) in str(error.value)


@pytest.mark.parametrize("shape", [(2, 8, 6, 4), (2, 6, 8, 3), (6, 6, 3), (1, 2, 6, 6, 3)])
def test_check_names_the_expected_and_the_given_shape(shape):
    with pytest.raises(ValueError, match="built for maps of") as error:
        Partitioning((6, 6), (3, 3)).check(jnp.zeros(shape), 3)
    assert "(6, 6, 3)" in str(error.value)
    assert str(shape) in str(error.value)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("fused", [False, True])
def test_a_block_for_maps_of_any_size_names_what_it_was_called_with(fused):
    block = RepMLPNetBlock(4, partition_size=3, reduction=2, rngs=nnx.Rngs(0))
    block = block.fused() if fused else block
    for shape in ((6, 6, 4), (2, 6, 6, 3), (2, 4, 6, 6), (6, 4), (1, 2, 6, 6, 4)):
        with pytest.raises(ValueError, match=rf"with C = 4 channels .* shape {re.escape(str(shape))}"):
            block(jnp.zeros(shape, jnp.float32))
    with pytest.raises(TypeError, match=r"takes floating-point maps .* not uint8"):
        block(jnp.zeros((2, 6, 6, 4), jnp.uint8))
    with pytest.raises(ValueError, match=r"partition_size \(3, 3\) does not divide image_size \(6, 7\)"):
        block(jnp.zeros((2, 6, 7, 4), jnp.float32))


@pytest.mark.usefixtures("unchecked_types")
def test_check_refuses_what_is_no_array():
    with pytest.raises(TypeError, match=r"takes floating-point maps .* not list: convert"):
        Partitioning((6, 6), (3, 3)).check([[0.0]], 3)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, jnp.bool_])
def test_check_refuses_images_that_are_not_floating_point(dtype):
    with pytest.raises(TypeError, match=f"not {jnp.dtype(dtype)}"):
        Partitioning((6, 6), (3, 3)).check(jnp.zeros((2, 6, 6, 3), dtype), 3)
