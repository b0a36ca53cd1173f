import jax
import pytest


@pytest.fixture(scope="module")
def as_users_have_it():
    """JAX as it is without the settings of the tests: Optax's schedules mix integers and floats."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        yield
