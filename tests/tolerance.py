"""How close is close: one comparison for all tests, and the reason for each tolerance.

Errors are relative to the largest expected magnitude, because every output is a sum whose terms, not whose
result, set the size of the rounding error.
"""

import chex
import jax
import numpy as np
from flax import nnx

# Sums of up to a few thousand terms in float64, twice: 2^-53 times some thousands.
ROUNDING_F64 = 1e-12
# The same in float32, where sums of hundreds of terms lose like its square root: 2^-24 times some dozens.
ROUNDING_F32 = 4e-6
# A float64 number stored as float32 is off by half a unit in the last place, 2^-24 of itself, and no more.
STORED_AS_F32 = 2.0**-24 * 1.01
# bfloat16 keeps 8 bits: 2^-9 for each rounding, and a block rounds about ten times on the way through.
ROUNDING_BF16 = 10 * 2.0**-9


def worst_error(actual, expected, scale: float | None = None) -> float:
    """Largest absolute difference over `scale`, by default the largest expected magnitude."""
    actual, expected = (np.asarray(array, np.float64) for array in (actual, expected))
    assert actual.shape == expected.shape, f"shapes differ: {actual.shape}, expected {expected.shape}"
    if not expected.size:
        return 0.0
    assert np.isfinite(actual).all(), "holds values that are not finite"
    scale = np.abs(expected).max() if scale is None else scale
    difference = np.abs(actual - expected).max()
    return 0.0 if difference == 0 else float(difference / scale)


def assert_close(actual, expected, tolerance: float, scale: float | None = None):
    """Asserts that two arrays are equal up to the tolerance."""
    error = worst_error(actual, expected, scale)
    assert error <= tolerance, f"off by {error:.3g} of the largest magnitude, allowed are {tolerance:.3g}"


def assert_trees_close(actual, expected, tolerance: float, scale: float | None = None):
    """Asserts that two trees have the same structure and close arrays; the message has the path of what is not."""

    def is_close(one, other):
        return worst_error(one, other, scale) <= tolerance

    def difference(one, other):
        return f"off by {worst_error(one, other, scale):.3g} of the largest magnitude, allowed are {tolerance:.3g}"

    chex.assert_trees_all_equal_comparator(is_close, difference, actual, expected)


def assert_identical(actual, expected):
    """Asserts that two models, or other trees, have the same structure, mode, dtypes and bits.

    Chex compares values, to which -0.0 is 0.0 and float32 may be float64.
    """
    (structure, state), (expected_structure, expected_state) = map(nnx.split, (actual, expected))
    assert structure == expected_structure
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected_state)
    chex.assert_trees_all_equal_comparator(
        lambda one, other: _bits(one) == _bits(other), lambda *_: "the bits are not the same", state, expected_state
    )


def _bits(array) -> bytes:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array).tobytes()
