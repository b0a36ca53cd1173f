"""Every published model, abstractly: its keys and shapes, parameters and multiply-accumulates are the official ones."""

import functools
import json
import warnings

import golden
import jax
import jax.numpy as jnp
import pytest
from cases import abstract
from flax import nnx

from repmlp_jax import create_model, fuse_params, fuse_report, list_models
from repmlp_jax.fusing.macs import count_macs
from repmlp_jax.fusing.report import count_parameters
from repmlp_jax.interop.torch import deployed, official_leaves

OFFICIAL_NAMES = {
    "create_RepMLPRes50_Light_224": "RepMLP-Res50-light-224",
    "create_RepMLPRes50_Bottleneck_224": "RepMLP-Res50-bottleneck-224",
}
STATS = json.loads((golden.FOLDER / "model_stats.json").read_text())["models"] if golden.FOLDER.exists() else {}


def parameters(names, quick):
    """The names, those that are not quick marked as slow; a test without names says what it needs."""
    marked = [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("name", marked or [pytest.param("", marks=golden.needed)])


every_official_model = parameters(STATS, {"RepMLPNet-T224"})
every_model = parameters(list_models(), {"pure_mlp", "wide_convnet", "RepMLPNet-T224"})


@functools.cache
def build(name):
    model = abstract(create_model, OFFICIAL_NAMES.get(name, name))
    model.eval()
    return model


def keys_and_shapes(model):
    variables = dict(nnx.to_flat_state(nnx.state(model)))
    return {leaf.key: list(leaf.stored_shape(variables[place].shape)) for place, leaf in official_leaves(model).items()}


@every_official_model
def test_keys_and_shapes(name):
    official = json.loads((golden.FOLDER / "keys" / f"keys_{name}.json").read_text())
    model = build(name)
    assert keys_and_shapes(model) == official["train"]
    assert keys_and_shapes(nnx.eval_shape(deployed, model)) == official["deploy"]


@every_official_model
def test_parameters_and_multiply_accumulates(name):
    model = build(name)
    image = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        for which, here in (("train", model), ("deploy", nnx.eval_shape(deployed, model))):
            assert count_parameters(here) == STATS[name][which]["params"]
            assert count_macs(lambda model, x: model(x), here, image) == STATS[name][which]["macs"]


@pytest.mark.slow
@every_model
def test_every_model_builds_and_fuses_abstractly(name):
    model = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = nnx.eval_shape(fuse_params, model)
    report = fuse_report(model)
    assert report.parameters == (count_parameters(model), count_parameters(fused))
    # Every norm has a place where it went, or a reason to stay.
    norms = sum(type(node).__name__ == "BatchNorm" for _, node in nnx.iter_graph(model))
    named = sum(len(block.folded) + len(block.kept) for block in report.blocks)
    assert named == norms
    assert not any(type(node).__name__ == "BatchNorm" for _, node in nnx.iter_graph(fused))


def test_a_name_that_does_not_exist_gets_the_nearest():
    with pytest.raises(ValueError, match="the nearest is 'RepMLPNet-T224'"):
        create_model("RepMLPNet-T24", rngs=nnx.Rngs(0))
