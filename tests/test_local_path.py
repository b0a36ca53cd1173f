import os
from pathlib import Path

import pytest

from repmlp_jax import load_model, load_torch_file, plots, save_model
from repmlp_jax.data.cifar10 import load_cifar10
from repmlp_jax.data.decoding import read_image
from repmlp_jax.data.folder import data_folder
from repmlp_jax.data.packed import read_packed, write_packed
from repmlp_jax.deploy.program import load_exported
from repmlp_jax.interop.initial_weights import with_weights_of
from repmlp_jax.local_path import local_path
from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.storage.whole_file import whole_file


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("make", [str, Path])
def test_a_tilde_is_the_home_folder(home, make):
    assert local_path(make("~/runs/digits")) == home / "runs" / "digits"
    assert local_path(make("~")) == home
    for plain in ("runs/~", "~file/x".replace("~", "a~"), "/runs/x", "C:/runs", "a:b", "."):
        assert local_path(make(plain)) == Path(plain)


@pytest.mark.parametrize("make", [str, Path])
@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket", "https://host/weights.pth", "file:///runs"])
def test_an_address_is_refused(address, make):
    with pytest.raises(ValueError, match="is an address, and only files of this machine are read and written"):
        local_path(make(address))


def test_no_home_is_one_clear_error(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    with pytest.raises(ValueError, match=r"~/run needs a home folder, and none is known for ~: set HOME, or replace ~"):
        local_path("~/run")
    with pytest.raises(ValueError, match="none is known for ~nobody_of_this_name"):
        local_path("~nobody_of_this_name/run")


def write(path):
    with whole_file(path, overwrite=False) as partial:
        partial.write_text("")


DOORS = {
    "save_model": lambda path: save_model(path, None),
    "load_model": load_model,
    "load_torch_file": load_torch_file,
    "load_exported": load_exported,
    "exports": write,
    "init_from": lambda path: with_weights_of(path, None),
    "checkpoints": Checkpoints,
    "pictures": lambda path: read_image(path, 3),
    "metrics": plots.read_rows,
    "packed pictures": read_packed,
    "packed pictures, written": lambda path: write_packed(path, {"train": [(b"", 0)], "test": [(b"", 0)]}),
    "CIFAR-10": lambda path: load_cifar10(f"{path}.npz"),
    "data_dir": data_folder,
}


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("door", DOORS)
def test_no_function_makes_a_folder_of_an_address(tmp_path, monkeypatch, door):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^gs://?bucket/x\S* is an address"):
        DOORS[door]("gs://bucket/x")
    assert not os.listdir(tmp_path)
