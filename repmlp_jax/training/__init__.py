"""Training: from a configuration to a trained and a fused model."""

from repmlp_jax.training.config import default_config
from repmlp_jax.training.loop import train_and_evaluate

__all__ = ["default_config", "train_and_evaluate"]
