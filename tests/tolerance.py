"""How close is close: one comparison for all tests, and the reason for each tolerance.

Errors are relative to the largest expected magnitude, because every output is a sum whose terms, not whose
result, set the size of the rounding error.
"""

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


def assert_trees_close(actual, expected, tolerance: float):
    """Asserts that two trees have the same structure and close arrays."""
    jax.tree.map(lambda one, other: assert_close(one, other, tolerance), actual, expected)


def assert_identical(actual: nnx.Module, expected: nnx.Module):
    """Asserts that two models have the same structure, mode, dtypes and bits."""
    (actual_structure, actual_state), (expected_structure, expected_state) = map(nnx.split, (actual, expected))
    assert actual_structure == expected_structure
    one, other = (jax.tree.leaves(state) for state in (actual_state, expected_state))
    for array, expected_array in zip(one, other, strict=True):
        assert array.dtype == expected_array.dtype
        assert np.asarray(array).tobytes() == np.asarray(expected_array).tobytes()
