"""What a PyTree of arrays holds, in a few words: each leaf's shape, dtype and a digest of its bits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def describe(tree: Any) -> dict[str, str]:
    """Names the leaves of a PyTree and says what arrays they are.

    Args:
        tree: PyTree of arrays, or of `jax.ShapeDtypeStruct`s.

    Returns:
        For each leaf its path, as in `params/stem/kernel`, and its dtype and shape, as in `float32[3,3]`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): _describe(leaf) for path, leaf in leaves}


def digests(tree: Any) -> dict[str, int]:
    """Digests the bits of every leaf of a PyTree of arrays.

    A digest is the same on any number of devices, under any sharding. Of two leaves that differ in one
    32-bit word the digests always differ; of leaves that differ in more, but for one case in 2**32.

    Args:
        tree: PyTree of `jax.Array`s of any dtype, PRNG keys included. Where it is spread over several
            processes, all of them make this call.

    Returns:
        For each leaf its path, as in `params/stem/kernel`, and an integer in [0, 2**32).
    """
    sums = [_digest(leaf) for leaf in jax.tree.leaves(tree)]
    return dict(zip(describe(tree), (int(value) for value in jax.device_get(sums)), strict=True))


def _describe(leaf: Any) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
    """The sum, modulo 2**32, of an array's words, each times an odd number that depends on its place.

    A sum of integers that wraps round does not depend on its order, hence not on the sharding; a product
    with an odd number is invertible modulo 2**32, hence no change of a single word goes unseen.
    """
    words = _words(array)
    place = jnp.zeros_like(words)
    for axis, stride in enumerate(_strides(words.shape)):
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
    return jnp.sum(words * (_scramble(place) | np.uint32(1)), dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The array's bits as uint32; an array of 64-bit numbers gets a last axis of two words."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _scramble(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3: a bijection of uint32 that spreads neighbours far apart."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
