"""Descriptions of the leaves of a PyTree: shape, dtype, and a digest of the bits."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from repmlp_jax.fusing.host import is_key

UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}


def describe(tree: Any) -> dict[str, str]:
    """Lists the path, dtype and shape of each leaf of a PyTree.

    Args:
        tree: PyTree of arrays, or of `jax.ShapeDtypeStruct`s.

    Returns:
        Path, such as `params/stem/kernel`, → dtype and shape, such as `float32[3,3]`.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def digests(tree: Any) -> dict[str, int]:
    """Digests the bits of every leaf of a PyTree of arrays.

    A digest is the same on any number of devices and under any sharding. The digests of two leaves that differ in one
    32-bit word always differ; those of leaves that differ in more words are equal in one case of 2**32.

    Args:
        tree: PyTree of `jax.Array`s of any dtype, including PRNG keys. If it is spread over several processes, every
            process makes this call.

    Returns:
        Path, such as `params/stem/kernel`, → an integer in [0, 2**32).
    """
    sums = [_digest(leaf) for leaf in jax.tree.leaves(tree)]
    return dict(zip(describe(tree), (int(value) for value in jax.device_get(sums)), strict=True))


@jax.jit
def _digest(array: jax.Array) -> jax.Array:
    """Sums an array's words modulo 2**32, each times an odd number that depends on its position.

    A sum modulo 2**32 does not depend on the order of its terms, so not on the sharding. A product with an odd number
    is invertible modulo 2**32, so every change of a single word changes the digest.
    """
    words = _words(array)
    place = jnp.zeros_like(words)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :])
        place += jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis) * np.uint32(stride % 2**32)
    return jnp.sum(words * (_scramble(place) | np.uint32(1)), dtype=jnp.uint32)


def _words(array: jax.Array) -> jax.Array:
    """The array's bits as uint32; an array of 64-bit numbers gets a last axis of two words."""
    if is_key(array):
        array = jax.random.key_data(array)
    if jnp.iscomplexobj(array):
        array = jnp.stack([array.real, array.imag], axis=-1)
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(array, UNSIGNED[array.dtype.itemsize]).astype(jnp.uint32)


def _scramble(x: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3, a bijection of uint32 that spreads neighbouring numbers."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
