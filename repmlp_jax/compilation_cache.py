"""Compiled programs on disk, so that a program's second start need not compile them again.

Only programs (`train.py`, `repmlp-jax`, benchmarks) call this: a library leaves JAX's settings to those who import it.
"""

import os
import warnings
from pathlib import Path

import jax


def cache_folder() -> Path:
    """The folder of compiled programs: in XDG_CACHE_HOME, by default `~/.cache`, as the XDG specification has it."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "repmlp_jax" / "compiled"


def keep_compiled_programs(wanted: bool = True) -> None:
    """Makes JAX keep compiled programs in `cache_folder()`, unless it is told to keep them elsewhere or not at all.

    What cannot be read or written there is compiled, and no warning says so.

    Args:
        wanted: False: no compiled program is read or written, wherever JAX is told to keep them.
    """
    if not wanted:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.values.get("jax_compilation_cache_dir") is not None:
        return
    try:
        folder = cache_folder()
        there = next(path for path in (folder, *folder.parents) if path.exists())
    except (OSError, RuntimeError):  # A folder that may not be searched, or a user without a home.
        return
    if not (there.is_dir() and os.access(there, os.W_OK)):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        # By default JAX keeps what took a second to compile; small models consist of quicker programs.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
