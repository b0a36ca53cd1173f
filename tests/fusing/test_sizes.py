"""Sizes: integers of Python and NumPy at every public door, and nothing else."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from repmlp_jax import RepMLP, RepMLPNetBlock, conv_to_fc
from repmlp_jax.blocks.layers import BatchNorm, ConvBN
from repmlp_jax.fusing.algebra import fc_bias

pytestmark = pytest.mark.usefixtures("unchecked_types")

PLACED = dict(image_size=(6, 6), partition_size=(3, 3))
DOORS = {
    "conv_to_fc": functools.partial(conv_to_fc, jnp.ones((3, 3, 1, 2)), partition_size=(4, 4), groups=1),
    "fc_bias": functools.partial(fc_bias, jnp.ones(4), partition_size=(2, 2), groups=2),
    "RepMLP": lambda **sizes: nnx.eval_shape(
        lambda: RepMLP(**dict(in_features=4, out_features=4) | PLACED | sizes, rngs=nnx.Rngs(0))
    ),
    "RepMLPNetBlock": lambda **sizes: nnx.eval_shape(
        lambda: RepMLPNetBlock(**dict(features=4, partition_size=(3, 3)) | sizes, rngs=nnx.Rngs(0))
    ),
    "ConvBN": lambda **sizes: nnx.eval_shape(
        lambda: ConvBN(**dict(in_features=4, out_features=4, kernel_size=3) | sizes, rngs=nnx.Rngs(0))
    ),
    "BatchNorm": lambda **sizes: nnx.eval_shape(lambda: BatchNorm(**sizes)),
}


@pytest.mark.parametrize(
    ("door", "argument", "value"),
    [
        ("conv_to_fc", "partition_size", (4.0, 4.0)),
        ("conv_to_fc", "partition_size", (4, "4")),
        ("conv_to_fc", "groups", 1.0),
        ("fc_bias", "partition_size", (2.0, 2)),
        ("fc_bias", "groups", True),
        ("RepMLP", "in_features", 4.0),
        ("RepMLP", "out_features", "4"),
        ("RepMLP", "image_size", (6.0, 6.0)),
        ("RepMLP", "partition_size", (3.0, 3)),
        ("RepMLP", "conv_kernels", (1, 3.0)),
        ("RepMLP", "conv_kernels", 3),
        ("RepMLP", "groups", None),
        ("RepMLP", "reduction", 2.0),
        ("RepMLPNetBlock", "features", 4.0),
        ("RepMLPNetBlock", "partition_size", 3.0),
        ("RepMLPNetBlock", "conv_kernels", "3"),
        ("RepMLPNetBlock", "sharesets", 2.0),
        ("RepMLPNetBlock", "reduction", 2.0),
        ("ConvBN", "in_features", 4.0),
        ("ConvBN", "kernel_size", (3.0, 3.0)),
        ("ConvBN", "strides", 2.0),
        ("ConvBN", "groups", 2.0),
        ("ConvBN", "kernel_dilation", (1.0, 1.0)),
        ("BatchNorm", "shape", (4.0,)),
    ],
)
def test_what_is_no_integer_is_refused(door, argument, value):
    with pytest.raises(TypeError, match=rf"{argument}.* must be .*integer.*, not "):
        DOORS[door](**{argument: value})


@pytest.mark.parametrize(
    ("door", "sizes"),
    [
        ("conv_to_fc", dict(partition_size=4, groups=np.int64(2))),
        ("conv_to_fc", dict(partition_size=np.array([4, 4]))),
        ("fc_bias", dict(partition_size=(np.int32(2), 2))),
        ("RepMLP", dict(image_size=6, partition_size=np.int64(3), conv_kernels=np.array([1, 3]), groups=np.uint8(2))),
        ("RepMLPNetBlock", dict(partition_size=3, sharesets=np.int64(2), reduction=np.int64(2))),
        ("ConvBN", dict(kernel_size=np.int64(3), strides=np.int64(2), kernel_dilation=(1, 2))),
        ("BatchNorm", dict(shape=np.int64(4))),
    ],
)
def test_numpy_integers_and_one_for_both_sides_are_taken(door, sizes):
    DOORS[door](**sizes)


def test_a_refused_size_leaves_the_right_one_alone():
    with pytest.raises(
        TypeError, match=r"partition_size must be two positive integers, or one for both, not \(5\.0, 5\.0\)"
    ):
        conv_to_fc(jnp.ones((3, 3, 1, 1)), (5.0, 5.0))
    assert conv_to_fc(jnp.ones((3, 3, 1, 1)), (5, 5)).shape == (1, 5, 5, 1, 5, 5, 1)


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        ("x", TypeError, r"kernel must be an array \(kh, kw, c, O\), not 'x'"),
        (np.ones((3, 3)), ValueError, r"must have the axes \(kh, kw, c, O\), not the shape \(3, 3\)"),
    ],
)
def test_conv_to_fc_takes_kernels_alone(kernel, error, message):
    with pytest.raises(error, match=message):
        conv_to_fc(kernel, (4, 4))
