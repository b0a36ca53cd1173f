"""Stored arrays in a model: all problems at once, and nothing shared with the model that was given."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, build
from flax import nnx
from tolerance import assert_identical

from repmlp_jax import PureMLP
from repmlp_jax.models.state import arrays_of, head_places, load_state


def make(**options):
    sizes = dict(image_size=(8, 8), in_features=1, widths=(4, 8), partition_size=(4, 4))
    return PureMLP(**sizes | options)


def test_arrays_come_back_also_into_an_abstract_model():
    model = build(make)
    assert_identical(load_state(abstract(make, param_dtype=jnp.float64), arrays_of(model), "x"), model)


def test_what_is_kept_is_not_shared():
    model, other = build(make), build(make, seed=1)
    before = nnx.clone(model)
    loaded = load_state(model, arrays_of(other), "x", kept=head_places(model))
    assert_identical(loaded.head, model.head)
    assert_identical(loaded.stages, other.stages)
    loaded.head.bias[...] += 1
    assert_identical(model, before)


def test_every_problem_is_named_at_once():
    arrays = arrays_of(build(make, param_dtype=jnp.float32))
    del arrays["embedding.conv.kernel"]
    arrays["tail.bias"] = np.zeros(3)
    arrays["embedding.norm.mean"] = np.zeros(4)
    arrays["head.bias"] = np.zeros(5, np.float32)
    with pytest.raises(ValueError, match="the file does not fit PureMLP:") as error:
        load_state(build(make, param_dtype=jnp.float32), arrays, "the file")
    assert str(error.value).splitlines()[1:] == [
        "  embedding.norm.mean holds float64, the model float32: cast one of them",
        '  head.bias has shape (5,), the model (10,); head="skip" leaves it as it is (init_head in recipes)',
        "  missing: embedding.conv.kernel",
        "  not used by the model: tail.bias",
    ]


def test_an_abstract_model_is_what_flax_makes_abstract():
    def make(rngs):
        return nnx.Sequential(nnx.Linear(2, 3, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))

    ours, flax = nnx.split(abstract(make)), nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    assert ours[0] == flax[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(ours[1], flax[1])
