"""Initial weights, drawn in float32 or wider for every dtype of the parameters, and with few compiled programs.

A program that draws random numbers takes 0.3 s or more to compile, and a model has dozens of shapes. With JAX's default
random numbers a longer draw begins with the shorter one, bit for bit. So each array is the beginning of a draw whose
length is a power of two, and a few programs serve all shapes. They run on the host, so the bits are the same on every
platform.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from repmlp_jax.fusing.algebra import fusing_dtype
from repmlp_jax.fusing.host import host, is_key

# Smaller arrays share one program, which draws this many numbers in a millisecond.
FEWEST_DRAWN = 2**18
# The standard deviation of a standard normal distribution that is truncated at -2 and 2.
DEVIATION_OF_CUT_NORMAL = 0.87962566103423978


def kernel_init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """The initialisation of the official code, PyTorch's for convolutions and FCs: U(-b, b), b = 1/sqrt(fan_in).

    A norm follows every layer but the last, so the size of the weights sets the effective learning rate, and the
    papers' recipes rely on this initialisation. All axes but the last are inputs.
    """
    return _uniform(key, shape, math.prod(shape[:-1]), dtype)


def shared_kernel_init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """`kernel_init` for the kernels of share-sets, (S, h·w, h·w), with the fan-in of a single share-set."""
    return _uniform(key, shape, shape[1], dtype)


def classifier_init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "..."]:
    """Flax's default for linear layers, LeCun normal: variance 1/fan_in, truncated at two deviations."""
    wide = fusing_dtype(dtype)
    deviation = np.sqrt(np.array(1 / math.prod(shape[:-1]), wide)) / np.array(DEVIATION_OF_CUT_NORMAL, wide)
    return _finished(_draw(_cut_normal, key, shape, deviation), dtype)


def fc3_init(key: PRNGKeyArray, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Float[Array, "g K N"]:
    """FC3's initialisation in the official code: a random orthogonal matrix over the outputs of all groups.

    The matrix (all outputs, inputs of a group) has orthonormal columns, or orthonormal rows if there are fewer rows. It
    is uniformly distributed among such matrices.
    """
    groups, columns, outputs = shape
    rows = groups * outputs
    one = np.ones((), fusing_dtype(dtype))
    normal = _draw(jax.random.normal, key, (max(rows, columns), min(rows, columns)), one)
    with jax.default_device(host()):
        matrix = _on_host(_with_orthonormal_columns(normal))
    matrix = matrix if rows >= columns else matrix.T
    return _finished(matrix.reshape(groups, outputs, columns).transpose(0, 2, 1), dtype)


def constant(value: float, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """An array of one value, without compiling a program."""
    return jax.device_put(np.full(shape, value, dtype))


def _uniform(key, shape, fan_in, dtype):
    wide = fusing_dtype(dtype)
    return _finished(_draw(_between_minus_one_and_one, key, shape, np.sqrt(3 * np.array(1 / 3 / fan_in, wide))), dtype)


def _between_minus_one_and_one(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, minval=-1)


def _cut_normal(key, shape, dtype):
    return jax.random.truncated_normal(key, -2, 2, shape, dtype)


@jax.jit
def _with_orthonormal_columns(normal):
    q, r = jnp.linalg.qr(normal)
    return q * jnp.sign(jnp.diagonal(r))[None]  # a unique decomposition, independent of LAPACK


def _draw(sample: Callable, key, shape, scale):
    """`sample(key, shape, dtype) * scale`, as a NumPy array unless it is traced."""
    if isinstance(key, jax.core.Tracer) or not _begins_with_the_shorter(key):
        return _on_host(_scaled(sample, tuple(shape), key, scale))
    size = math.prod(shape)
    length = max(FEWEST_DRAWN, 2 ** (size - 1).bit_length())
    with jax.default_device(host()):
        longer = _scaled(sample, (length,), jax.device_put(key, host()), scale)
    if isinstance(longer, jax.core.Tracer):  # in a traced function whose key is a constant
        return _scaled(sample, tuple(shape), key, scale)
    return np.asarray(longer)[:size].reshape(shape)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scaled(sample, shape, key, scale):
    return sample(key, shape, scale.dtype) * scale


def _begins_with_the_shorter(key) -> bool:
    """Whether a draw with this key begins with every shorter draw."""
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined, unused-ignore]  # of jax 0.10
    return is_key(key) and jax.random.key_impl(key) == "threefry2x32" and partitionable


def _on_host(array):
    return array if isinstance(array, jax.core.Tracer) else np.asarray(array)


def _finished(array, dtype):
    """The draw as a JAX array; a NumPy array is copied out of the longer draw."""
    return array.astype(dtype) if isinstance(array, jax.core.Tracer) else jax.device_put(np.array(array, dtype))
