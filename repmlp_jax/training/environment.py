"""What a run's numbers depend on besides its configuration; checkpoints record it."""

import logging
from importlib.metadata import version
from typing import Any

import jax

from repmlp_jax.version import versions

logger = logging.getLogger("repmlp_jax")

FLAGS = (
    *("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable"),
    "jax_default_matmul_precision",
)


def environment(examples: int) -> dict[str, Any]:
    """The number of examples, JAX's flags that change numbers, the libraries' versions, and the kinds of devices."""
    return dict(
        examples=examples,
        flags={name.upper(): getattr(jax.config, name) for name in FLAGS},
        versions=versions() | {name: version(name) for name in ("jaxlib", "optax")},
        devices=sorted({device.device_kind for device in jax.devices()}),
    )


def check_environment(recorded: dict[str, Any], examples: int, where: str) -> None:
    """Compares the environment with the recorded one; {}, of an earlier version, counts as the same.

    A difference in versions or devices is a warning.

    Raises:
        ValueError: if the number of examples or flags differ.
    """
    if not recorded:
        return
    now = environment(examples)
    if examples != recorded["examples"]:
        raise ValueError(
            f"{where} was made with {recorded['examples']} training examples, and now there are {examples}: restore "
            f"the dataset, or choose another workdir"
        )
    if changed := _differences(now["flags"], recorded["flags"]):
        mended = ", ".join(f"unset {name}" if there is None else f"set {name}={there}" for name, _, there in changed)
        raise ValueError(
            f"{where} was made with {_listed(changed)}, which changes the numbers: {mended}, or choose another workdir"
        )
    kinds = ({"the devices": ", ".join(one["devices"])} for one in (now, recorded))
    changed = _differences(now["versions"], recorded["versions"]) + _differences(*kinds)
    if changed:
        logger.warning(
            "%s was made with %s: the numbers may differ from those of an uninterrupted run", where, _listed(changed)
        )


def _differences(now, there):
    return [(name, now.get(name), there[name]) for name in sorted(there) if now.get(name) != there[name]]


def _listed(changed):
    return ", ".join(f"{name}={there} (now {now})" for name, now, there in changed)
