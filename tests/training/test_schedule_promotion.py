import types

import jax
import numpy as np
import pytest

from repmlp_jax.training.optimizer import make_schedule


@pytest.mark.parametrize("kind", ["cosine", "poly", "steps"])
@pytest.mark.parametrize("warmup_epochs", [0, 1])
def test_schedules_work_where_jax_refuses_implicit_promotion(kind, warmup_epochs):
    config = types.SimpleNamespace(
        schedule=kind, epochs=4, warmup_epochs=warmup_epochs, learning_rate=0.1, drop_at=(0.5,), poly_power=0.9
    )
    with jax.numpy_dtype_promotion("strict"):
        rate = jax.jit(make_schedule(config, 5))(np.int32(7))
    assert 0 < rate <= 0.1
