"""The version: the only place that states it, for the package too, so that a checkout needs no installation."""

import flax
import jax

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Of this library and of the two that decide what a file of it means."""
    return {"repmlp_jax": __version__, "jax": jax.__version__, "flax": flax.__version__}
