"""The version of the library, defined only here."""

import flax
import jax

__version__ = "0.2.0"


def versions() -> dict[str, str]:
    """The versions of this library, JAX and Flax, which saved files record."""
    return {"repmlp_jax": __version__, "jax": jax.__version__, "flax": flax.__version__}
