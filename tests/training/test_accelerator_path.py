import jax
import pytest
from tiny_recipe import get_config
from tolerance import assert_trees_close
from training_parts import mesh_of, prepare

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users_have_it")]


def test_the_loop_of_accelerators_trains_as_single_steps_do(monkeypatch):
    """On accelerators the steps of a call are one loop on the device, and grouped convolutions are XLA's own."""
    config = get_config(learning_rate=0.01)
    single_steps = prepare(config, mesh_of(2)).train(3)
    # The functions traced so far are those of the CPU, and would be taken from JAX's caches.
    jax.clear_caches()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    accelerated = prepare(config, mesh_of(2))
    assert accelerated.train_steps._cache_size() == 0
    loop = accelerated.train(1, 2)
    # Another number of steps is no other program.
    assert accelerated.train_steps._cache_size() == 1
    jax.clear_caches()
    assert int(loop.step) == int(single_steps.step) == 3
    assert_trees_close(loop.parameters, single_steps.parameters, 1e-5)
    assert_trees_close(loop.statistics, single_steps.statistics, 1e-5)
