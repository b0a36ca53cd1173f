"""Saved models in one `.safetensors` file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract, randomised
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tolerance import assert_identical

from repmlp_jax import create_model, fuse_params, load_model, load_torch_file, quantise_params, save_model
from repmlp_jax.interop.initial_weights import with_weights_of
from repmlp_jax.storage import models

SMALL = dict(image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1, 3))


@pytest.fixture(scope="module")
def model():
    return randomised(abstract(create_model, "pure_mlp", **SMALL))


@pytest.fixture
def file(model, tmp_path):
    save_model(tmp_path / "net.safetensors", model, preprocessing={"mean": [0.5]})
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    "form",
    [
        lambda model: model,
        fuse_params,
        lambda model: quantise_params(fuse_params(model)),
        lambda model: fuse_params(model, jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)),
    ],
    ids=["trained", "fused", "int8", "fused with an example"],
)
def test_one_file_holds_it_all(tmp_path, model, form):
    model = form(model)
    save_model(tmp_path / "of" / "net.safetensors", model, preprocessing={"mean": [0.5]})
    assert [child.name for child in (tmp_path / "of").iterdir()] == ["net.safetensors"]
    loaded, preprocessing = models.load(tmp_path / "of" / "net.safetensors")
    expected = nnx.clone(model)
    expected.eval()
    assert_identical(loaded, expected)
    assert preprocessing == {"mean": [0.5]}


def test_other_programs_read_it(file, model):
    with safe_open(file, framework="numpy") as opened:
        description = json.loads(opened.metadata()["repmlp_jax"])
    assert description["model"] == "PureMLP"
    np.testing.assert_array_equal(load_file(file)["head.kernel"], model.head.kernel[...])


def test_it_is_initial_weights(file, model):
    loaded = with_weights_of(file, abstract(create_model, "pure_mlp", **SMALL))
    assert_identical(nnx.state(loaded), nnx.state(load_model(file)))


def test_it_is_replaced_on_demand(file, model):
    before = file.read_bytes()
    with pytest.raises(FileExistsError, match=r"net\.safetensors exists; pass overwrite=True to replace it"):
        save_model(file, model)
    assert file.read_bytes() == before
    save_model(file, fuse_params(model), overwrite=True)
    assert type(load_model(file).stages[0][0]).__name__ == "FusedRepMLP"


@pytest.mark.parametrize("overwrite", [False, True])
def test_another_file_is_not_replaced(tmp_path, model, overwrite):
    save_file({"kernel": np.zeros(3)}, tmp_path / "net.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    for name, kind in (("net", "file"), ("folder", "folder")):
        with pytest.raises(FileExistsError, match=rf"{name}\.safetensors is a {kind}: save_model replaces only"):
            save_model(tmp_path / f"{name}.safetensors", model, overwrite=overwrite)
    assert load_torch_file(tmp_path / "net.safetensors").keys() == {"kernel"}


def test_nothing_is_written_below_a_file(file, model):
    before = file.read_bytes()
    for path in (file / "net.safetensors", file / "of" / "folder"):
        with pytest.raises(NotADirectoryError, match=r"net\.safetensors is a file, so nothing can be written below it"):
            save_model(path, model)
    assert file.read_bytes() == before


def test_a_changed_array_is_damage(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 4
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.safetensors is damaged: .* does not hold what was saved"):
        load_model(file)


def test_a_changed_description_is_damage(file):
    file.write_bytes(file.read_bytes().replace(b"PureMLP", b"PureMLQ"))
    with pytest.raises(ValueError, match=r"net\.safetensors is damaged: its metadata cannot be read"):
        load_model(file)


@pytest.mark.parametrize("content", [b"", b"weights", None], ids=["empty", "text", "half"])
def test_another_file_is_no_model(file, content):
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ValueError, match=r"net\.safetensors was not written by save_model, or is damaged"):
        load_model(file)
    with pytest.raises(FileNotFoundError, match=r"there is no folder or file .*none\.safetensors"):
        load_model(file.with_name("none.safetensors"))
