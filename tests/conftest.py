"""Every test runs with eight virtual CPU devices, float64 available, and no silent casts or broadcasts."""

import os
from pathlib import Path

import jax
import pytest

# Also for the processes that tests start; on a machine with an accelerator the tests are those of the CPU all the same.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_datasets():
    """The folder of prepared TFDS datasets: TFDS_DATA_DIR where set, else the one beside the checkout."""
    folder = Path(os.environ.get("TFDS_DATA_DIR", SHARED / "tensorflow_datasets"))
    if not folder.is_dir():
        pytest.skip(f"needs prepared TFDS datasets in {folder} (or set TFDS_DATA_DIR)")
    return folder
