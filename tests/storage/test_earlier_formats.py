"""Models that earlier versions saved, with the axes of their kernels."""

import json
import shutil
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from test_saved import change
from tolerance import ROUNDING_F32, assert_close, assert_identical
from typer.testing import CliRunner

from repmlp_jax import PureMLP, load_model, save_model
from repmlp_jax.cli import app
from repmlp_jax.interop.initial_weights import with_weights_of
from repmlp_jax.models.state import arrays_of
from repmlp_jax.storage import models as saved_models
from repmlp_jax.storage.earlier_formats import as_stored

FORMS = ("trained", "fused", "int8", "int8_multiplied")
NAMES = [f"{kind}_{form}" for kind in ("pure_mlp", "repmlpnet") for form in FORMS]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Models of format 2, and their logits: partitions are not square, and there are two groups or share-sets."""
    folder = tmp_path_factory.mktemp("stored")
    with zipfile.ZipFile(Path(__file__).with_name("stored_models_format_2.zip")) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_models_of_format_2_are_read(stored, name, caplog):
    model, preprocessing = saved_models.load(stored / name)
    said = [f"{stored / name} multiplied in int8 when it was saved: now only its weights are in int8"]
    assert caplog.messages == said * name.endswith("_multiplied")
    file = load_file(stored / name / "weights.safetensors")
    arrays = arrays_of(model)
    assert arrays.keys() == file.keys()
    assert {array.dtype for array in file.values()} == {np.dtype(array.dtype) for array in arrays.values()}
    assert all(np.asarray(arrays[key]).tobytes() == array.tobytes() for key, array in file.items())
    assert any(arrays[key].shape != array.shape for key, array in file.items())
    x = jnp.linspace(-1, 1, 2 * np.prod(model.input_shape), dtype=jnp.float32).reshape(2, *model.input_shape)
    logits = jax.jit(lambda model, x: model(x))(model, x)
    # What multiplied in int8 computes with the same weights in floating point.
    expected = json.loads((stored / "logits.json").read_text())[name.removesuffix("_multiplied")]
    assert_close(logits, expected, ROUNDING_F32)
    assert preprocessing == {"mean": [0.5]}


def test_saved_again_it_is_of_the_format_of_today(stored, tmp_path):
    model = load_model(stored / "pure_mlp_fused")
    save_model(tmp_path / "again", model)
    assert json.loads((tmp_path / "again" / "model.json").read_text())["format"] == 3
    assert_identical(load_model(tmp_path / "again"), model)


def test_a_wrong_value_in_format_2_is_noticed(stored, tmp_path):
    path = shutil.copytree(stored / "pure_mlp_trained", tmp_path / "model")
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: weights\.safetensors does not hold what was saved"):
        load_model(path)


def test_in_the_format_of_today_no_shape_is_changed(stored, tmp_path):
    path = shutil.copytree(stored / "pure_mlp_trained", tmp_path / "model")
    change(path, format=3)
    with pytest.raises(ValueError, match=r"is damaged, or its PureMLP is another .*: the arrays of the two differ"):
        load_model(path)


def test_training_starts_from_a_model_of_format_2(stored):
    saved = load_model(stored / "pure_mlp_trained")
    model = saved_models._abstract(PureMLP, {"arguments": json.loads(saved.arguments), "fused": False})
    initialised = with_weights_of(stored / "pure_mlp_trained", model)
    assert_identical(arrays_of(initialised), arrays_of(saved))


@pytest.mark.slow
def test_commands_take_a_model_of_format_2(stored, tmp_path):
    result = CliRunner().invoke(app, ["fuse", str(stored / "repmlpnet_trained"), str(tmp_path / "fused")])
    assert result.exit_code == 0, result.output
    fused, expected = (arrays_of(load_model(path)) for path in (tmp_path / "fused", stored / "repmlpnet_fused"))
    for key, array in expected.items():
        assert_close(fused[key], array, ROUNDING_F32)


def leaf(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
    ("stored", "today", "merges"),
    [
        ((2, 3, 4, 5, 3, 4, 6), (2, 60, 72), True),
        ((2, 1, 1, 1, 3, 4, 6), (2, 1, 72), True),
        ((1, 1, 3, 4, 6), (1, 1, 72), True),
        ((4, 1, 1, 1), (4,), True),
        ((2, 3, 4), (24,), True),
        ((2, 3, 4), (2, 3, 4), False),
        ((2, 3, 4), (4, 6), False),
        ((2, 3, 4), (6, 5), False),
        ((2, 6), (2, 2, 3), False),
        ((6,), (1, 6), False),
    ],
)
def test_only_adjacent_axes_merge(stored, today, merges):
    text = f"float32[{','.join(map(str, stored))}]"
    found = as_stored({"a": leaf(*today), "new": leaf(2)}, {"a": text, "gone": "float32[]"})
    assert found == {"a": leaf(*(stored if merges else today)), "new": leaf(2)}
