"""Refusing 64-bit numbers where JAX would use 32 bits in their place."""

from collections.abc import Iterable

import jax
import numpy as np
from jax.typing import DTypeLike


def check_precision(dtypes: Iterable[DTypeLike | None], what: str):
    """Refuses 64-bit dtypes unless JAX has them turned on; None is any dtype.

    Raises:
        ValueError: names the dtype, and how to turn them on.
    """
    wanted = [np.dtype(dtype) for dtype in dtypes if dtype is not None]
    if narrowed := [dtype.name for dtype in wanted if jax.dtypes.canonicalize_dtype(dtype) != dtype]:
        raise ValueError(
            f"{what} is of {narrowed[0]}, which JAX replaces by 32 bits unless told otherwise: set JAX_ENABLE_X64=1 "
            f'in the environment, or jax.config.update("jax_enable_x64", True) before any array is made'
        )
