"""Training: from a configuration to a trained and a fused model."""

import importlib
from typing import TYPE_CHECKING

from repmlp_jax.extras import name_extra

if TYPE_CHECKING:
    from repmlp_jax.tasks import train_and_evaluate
    from repmlp_jax.training.config import default_config

__all__ = ["default_config", "train_and_evaluate"]

HOMES = {"default_config": "repmlp_jax.training.config", "train_and_evaluate": "repmlp_jax.tasks"}


def __getattr__(name: str):
    """Imports the names in `HOMES` on first use: a step alone needs no ml_collections, Orbax or TensorBoard."""
    if name in HOMES:
        with name_extra():
            return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *HOMES})
