"""Files of PyTorch weights: every way in which they come, and none in which they could do harm."""

import pickle
import sys

import numpy as np
import pytest
from cases import build_block
from safetensors.numpy import save_file
from tolerance import assert_identical

from repmlp_jax import from_torch, load_torch_file, to_torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs PyTorch (the extra [torch])")


@pytest.fixture(scope="module")
def block():
    return build_block()


@pytest.fixture
def tensors(torch, block):
    return {key: torch.from_numpy(np.array(array)) for key, array in to_torch(block).items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert found[key].dtype == array.dtype
        assert found[key].shape == array.shape
        assert found[key].tobytes() == array.tobytes()


def test_safetensors_come_and_go_bit_for_bit(block, tmp_path):
    save_file(to_torch(block), tmp_path / "block.safetensors")
    found = load_torch_file(tmp_path / "block.safetensors")
    assert_same(found, to_torch(block))
    assert_identical(from_torch(block, found), block)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar"])
@pytest.mark.parametrize(
    "nest",
    [
        lambda tensors: tensors,
        lambda tensors: {"state_dict": tensors, "epoch": 3},
        lambda tensors: {"model": tensors, "optimizer": {"state": {}}, "lr": 0.1},
        lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()},
        lambda tensors: {"state_dict": {f"module.{key}": tensor for key, tensor in tensors.items()}},
    ],
    ids=["plain", "state_dict", "model", "module.", "both"],
)
def test_torch_files_come_bit_for_bit(torch, block, tensors, tmp_path, suffix, nest):
    torch.save(nest(tensors), tmp_path / f"block{suffix}")
    assert_same(load_torch_file(tmp_path / f"block{suffix}"), to_torch(block))


def test_what_goes_out_is_what_torch_expects(torch, block, tensors, tmp_path):
    torch.save(tensors, tmp_path / "block.pth")
    loaded = torch.load(tmp_path / "block.pth", weights_only=True)
    assert loaded["fc3_bn.num_batches_tracked"].dtype == torch.int64
    assert loaded["fc3_bn.num_batches_tracked"].shape == ()
    assert loaded["fc3.weight"].dtype == torch.float64


def test_half_precision_stays_what_it_is(torch, tmp_path):
    values = [1.0, -2.5, 3e-3]
    torch.save(
        {kind: torch.tensor(values, dtype=getattr(torch, kind)) for kind in ("bfloat16", "float16")}, tmp_path / "x.pt"
    )
    found = load_torch_file(tmp_path / "x.pt")
    assert {name: array.dtype.name for name, array in found.items()} == {"bfloat16": "bfloat16", "float16": "float16"}
    for kind, array in found.items():
        assert (array.astype(np.float32) == torch.tensor(values, dtype=getattr(torch, kind)).float().numpy()).all()


class Malicious:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_not_executed(torch, tmp_path):
    torch.save({"weight": torch.zeros(2), "surprise": Malicious(tmp_path / "harm")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad.pth holds more than weights, which was not executed"):
        load_torch_file(tmp_path / "bad.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "harm"), protocol=2))
    with pytest.raises(ValueError, match=r"old.pth"):
        load_torch_file(tmp_path / "old.pth")
    assert not (tmp_path / "harm").exists()


def test_without_torch_it_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "repmlp_jax\[torch\]" \(a .safetensors file does not\)'):
        load_torch_file(tmp_path / "weights.pth")


def test_what_cannot_be_read_is_named(torch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere.pth"):
        load_torch_file(tmp_path / "nowhere.pth")
    (tmp_path / "weights.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.h5 ends in '.h5'; load_torch_file reads .safetensors, .pth"):
        load_torch_file(tmp_path / "weights.h5")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(ValueError, match=r"cut.safetensors is damaged or no safetensors file"):
        load_torch_file(tmp_path / "cut.safetensors")
    torch.save({"weight": torch.zeros(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:800])
    with pytest.raises(ValueError, match=r"cut.pth is damaged or no PyTorch file"):
        load_torch_file(tmp_path / "cut.pth")
    torch.save({"epoch": 3, "loss": [1.0]}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds no state_dict of tensors, but \{'epoch': int, 'loss': list\}"):
        load_torch_file(tmp_path / "other.pth")
