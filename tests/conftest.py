"""Every test runs with eight virtual CPU devices, float64 available, and no silent casts or broadcasts."""

import collections
import functools
import gc
import importlib
import os
import sys
from pathlib import Path

import jax
import jaxtyping
import pytest

# The bytecode of the package and of the tests is kept in any case: each process would spend two seconds on it.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Also for the processes that tests start; on a machine with an accelerator the tests are those of the CPU all the same.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Errors within JAX are raised and caught many times while a net is traced: their tracebacks stay as they are.
jax.config.update("jax_traceback_filtering", "off")


def pytest_configure(config):
    """Most of the time goes into compiling: what was compiled once, by any process and in any run, is kept.

    The fast loop is compiled without optimisation, which takes half the time; the whole suite as users have it.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("compiled"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    if "not slow" in config.option.markexpr:
        # By a variable, for the processes that tests start, and so that CI can have it otherwise.
        quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        jax.config.update("jax_disable_most_optimizations", quick == "1")
    # JAX makes an MLIR context for each program, which takes longer than all else that a small one needs: one serves
    # all programs of a process. JAX's own code makes it, so a version that does it elsewhere is only slower.
    lowering = importlib.import_module("jax._src.interpreters.mlir")
    if hasattr(lowering, "make_ir_context"):
        lowering.make_ir_context = functools.cache(lowering.make_ir_context)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The files that take longest begin: a worker that ended with one would be waited for.

    (pytest-xdist would begin with those of the most tests, and slow files have few.)
    """
    weights = collections.Counter()
    for item in items:
        weights[item.path] += 30 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish():
    """The garbage collector passes over what the imports made: it took a tenth of the time.

    Initial weights are the beginning of a longer draw, which here is no longer than tiny models need: the bits are the
    same, and without optimisation the draw for a large model takes 30 ms for each array.
    """
    # Imported late, so that the types of its calls can be checked.
    importlib.import_module("repmlp_jax.blocks.initializers").FEWEST_DRAWN = 2**12
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_datasets():
    """The folder of prepared TFDS datasets: TFDS_DATA_DIR where set, else the one beside the checkout."""
    folder = Path(os.environ.get("TFDS_DATA_DIR", SHARED / "tensorflow_datasets"))
    if not folder.is_dir():
        pytest.skip(f"needs prepared TFDS datasets in {folder} (or set TFDS_DATA_DIR)")
    return folder


@pytest.fixture
def unchecked_types(monkeypatch):
    """For tests of what is said to wrong arguments: where types are checked at every call, they are not in these."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def as_users_have_it():
    """JAX as it is without the settings of the tests: Optax's schedules mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield


@pytest.fixture
def mixed_dtypes():
    """JAX as it is in what nets of others need: Flax's average pools divide by an integer of NumPy."""
    with jax.numpy_dtype_promotion("standard"):
        yield
