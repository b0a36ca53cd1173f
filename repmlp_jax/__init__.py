"""RepMLP for JAX: train fully-connected layers beside convolutions, run three fully-connected layers."""

from repmlp_jax.blocks import RepMLP
from repmlp_jax.fuse import fuse_params
from repmlp_jax.reparam import conv_to_fc

__all__ = ["RepMLP", "conv_to_fc", "fuse_params"]
