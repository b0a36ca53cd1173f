"""Training: from a configuration to a trained and a fused model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repmlp_jax.tasks import train_and_evaluate
    from repmlp_jax.training.config import default_config

__all__ = ["default_config", "train_and_evaluate"]


def __getattr__(name: str):
    """Imports what a whole run needs (ml_collections, Orbax, TensorBoard) when it is asked for: a step needs none."""
    if name == "default_config":
        from repmlp_jax.training.config import default_config

        return default_config
    if name == "train_and_evaluate":
        from repmlp_jax.tasks import train_and_evaluate

        return train_and_evaluate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
