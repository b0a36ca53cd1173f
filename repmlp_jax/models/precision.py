"""Refusing 64-bit numbers where JAX would use 32 bits in their place."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.typing import DTypeLike

WIDE = ("float64", "complex128", "int64", "uint64")


def check_precision(dtypes: Iterable[DTypeLike | None], what: str):
    """Refuses 64-bit dtypes unless JAX has them turned on.

    Raises:
        ValueError: names the dtype, and how to turn them on.
    """
    wide = [name for dtype in dtypes if dtype is not None and (name := np.dtype(dtype).name) in WIDE]
    if wide and not jax.config.jax_enable_x64:
        raise ValueError(
            f"{what} is of {wide[0]}, which JAX replaces by 32 bits unless it is asked not to: set JAX_ENABLE_X64=1 in "
            f'the environment, or jax.config.update("jax_enable_x64", True) before any array is made'
        )
