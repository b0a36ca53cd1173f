"""The host's own processor as a device of JAX, for what is done once and would take an accelerator longer."""

import jax


def host() -> jax.Device | None:
    """The CPU of this process; None, which stands for JAX's default, where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
