"""Every field with its default; the other files in this folder start from it."""

from repmlp_jax.training import default_config as get_config

__all__ = ["get_config"]
