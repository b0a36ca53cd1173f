"""Files of PyTorch weights: every way in which they come, and none in which they could do harm."""

import json
import logging
import os
import pickle
import struct
import sys
import zipfile

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
        lambda tensors: {"model": {"state_dict": tensors, "epoch": 3}},
        lambda tensors: {f"module._orig_mod.{key}": tensor for key, tensor in tensors.items()},
        lambda tensors: (
            {"n_averaged": tensors["avg.bn.num_batches_tracked"]}
            | {f"module.{key}": tensor for key, tensor in tensors.items()}
        ),
    ],
    ids=["plain", "state_dict", "model", "module.", "both", "model.state_dict", "module._orig_mod.", "averaged"],
)
def test_torch_files_come_bit_for_bit(torch, block, tensors, tmp_path, suffix, nest):
    torch.save(nest(tensors), tmp_path / f"block{suffix}")
    assert_same(load_torch_file(tmp_path / f"block{suffix}"), to_torch(block))


def test_of_several_state_dicts_the_log_says_which_is_taken(torch, tmp_path, caplog):
    first, averaged, last = ({"weight": torch.full((2,), float(value))} for value in range(3))
    path = tmp_path / "x.pth"
    torch.save({"epoch": 3, "state_dict": first, "state_dict_ema": {"module.weight": averaged["weight"]}}, path)
    assert load_torch_file(path)["weight"][0] == 0
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "reading 'state_dict', not 'state_dict_ema'" in record.getMessage()
    caplog.clear()
    assert load_torch_file(path, entry="state_dict_ema")["weight"][0] == 1
    torch.save({"model": {"state_dict": first, "ema": averaged}, "last": {"state_dict": last}}, path)
    assert [load_torch_file(path, entry=entry)["weight"][0] for entry in ("model", "ema", "last")] == [0, 1, 2]
    torch.save({"state_dict": first, "optimizer": {"state": {0: {"momentum": averaged["weight"]}}}}, path)
    assert load_torch_file(path)["weight"][0] == 0
    assert not caplog.records
    with pytest.raises(ValueError, match=r"has no entry 'ema', but \{'state_dict': .*; entry='state_dict' takes"):
        load_torch_file(path, entry="ema")
    torch.save({"ema": averaged, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"holds no state_dict of tensors, but .*; entry='ema' takes what is there"):
        load_torch_file(path)
    save_file({"weight": np.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"a .safetensors file like .* holds arrays alone, and no entries"):
        load_torch_file(tmp_path / "x.safetensors", entry="ema")


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


def test_a_flipped_bit_changes_no_weight(torch, tmp_path):
    torch.save({f"layer{index}.weight": torch.arange(20.0) + index for index in range(3)}, tmp_path / "whole.pth")
    expected, content = load_torch_file(tmp_path / "whole.pth"), (tmp_path / "whole.pth").read_bytes()
    damaged = 0
    for place in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (tmp_path / "flipped.pth").write_bytes(flipped)
        try:
            assert_same(load_torch_file(tmp_path / "flipped.pth"), expected)  # in the padding it changes nothing
        except ValueError:
            damaged += 1
    assert damaged > 50
    at = content.index(struct.pack("<2f", 1, 2))
    (tmp_path / "array.pth").write_bytes(content[:at] + b"\x01" + content[at + 1 :])
    with pytest.raises(ValueError, match=r"array.pth is damaged: the checksum of its part whole/data/0 is wrong"):
        load_torch_file(tmp_path / "array.pth")


def test_a_file_without_checksums_is_read_with_a_warning(torch, tmp_path, caplog):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(2)}, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert (load_torch_file(tmp_path / "x.pth")["weight"] == 1).all()
    assert "x.pth has no checksums" in caplog.text


def test_what_unpacks_to_much_more_than_its_size_is_not_read(torch, tmp_path):
    torch.save({"weight": torch.zeros(10_000)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match=r"bomb.pth has [\d,]+ bytes and unpacks to 4\d,\d{3}: it is not read"):
        load_torch_file(tmp_path / "bomb.pth")
    torch.save({"small": torch.ones(2), "weight": torch.zeros(1).expand(10**13)}, tmp_path / "view.pth")
    with pytest.raises(ValueError, match=r"its arrays 40,000,000,000,000: they are not read. weight, the largest"):
        load_torch_file(tmp_path / "view.pth")
    torch.save({"weight": torch.arange(3.0).expand(2, 3), "turned": torch.ones(2, 3).T}, tmp_path / "small.pth")
    assert (load_torch_file(tmp_path / "small.pth")["weight"] == [[0, 1, 2], [0, 1, 2]]).all()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda torch: torch.eye(3).to_sparse(), "torch.float32, torch.sparse_coo"),
        (lambda torch: torch.eye(3).to_sparse_csr(), "torch.float32, torch.sparse_csr"),
        (lambda torch: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "torch.qint8, torch.strided"),
        (lambda torch: torch.ones(3).to(torch.float8_e4m3fn), "torch.float8_e4m3fn, torch.strided"),
        (lambda torch: torch.ones(3, device="meta"), "torch.float32, torch.strided on meta"),
    ],
    ids=["sparse", "sparse rows", "quantised", "float8", "no values"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_numpy_has_not_are_named(torch, tmp_path, make, what):
    torch.save({"plain": torch.ones(2), "weight": make(torch)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=f"x.pth holds weight as {what}, for which NumPy has no array"):
        load_torch_file(tmp_path / "x.pth")


def write_safetensors(path, dtype, data):
    header = json.dumps({"weight": {"dtype": dtype, "shape": [4], "data_offsets": [0, len(data)]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_half_precision_of_safetensors(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", "BF16", b"\x80\x3f" * 4)
    found = load_torch_file(tmp_path / "x.safetensors")["weight"]
    assert found.dtype.name == "bfloat16"
    assert (found.astype(np.float32) == 1).all()
    write_safetensors(tmp_path / "x.safetensors", "F8_E4M3", bytes(4))
    with pytest.raises(ValueError, match=r"x.safetensors holds weight as F8_E4M3, for which NumPy has no array"):
        load_torch_file(tmp_path / "x.safetensors")


def test_metadata_of_safetensors_is_no_weight(block, tmp_path):
    save_file(to_torch(block), tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert_same(load_torch_file(tmp_path / "x.safetensors"), to_torch(block))


@pytest.mark.parametrize("levels", [1, 100_000])
def test_dictionaries_without_an_end_are_no_state_dict(torch, tmp_path, levels):
    key = b"X\x05\x00\x00\x00model"
    circle = b"\x80\x02}q\x00" + key + b"h\x00s."
    deep = b"\x80\x02" + (b"}" + key) * levels + b"}" + b"s" * levels + b"."
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("x/data.pkl", circle if levels == 1 else deep)
        archive.writestr("x/version", b"3\n")
        archive.writestr("x/byteorder", b"little")
    with pytest.raises(ValueError, match=r"x.pth holds no state_dict of tensors, but \{'model': dict\}"):
        load_torch_file(tmp_path / "x.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\xef\xbb\xbf \n<!DOCTYPE html><html>", "is a web page and not the weights"),
        (b"<html lang='en'>", "is a web page and not the weights"),
        (b"<?xml version='1.0'?><Error>", "is an answer of a server in XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "is a pointer of Git LFS and not the weights"),
        (b"", "is empty"),
    ],
    ids=["page", "old page", "answer", "pointer", "empty"],
)
def test_what_was_downloaded_instead_is_named(torch, tmp_path, suffix, content, what):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"x{suffix} {what}"):
        load_torch_file(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_only_regular_files_are_opened(torch, tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(ValueError, match=f"{name}{suffix} is not a regular file but a device, a pipe or a socket"):
            load_torch_file(tmp_path / f"{name}{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    with pytest.raises(IsADirectoryError, match=f"folder{suffix} is a folder, .* load_model reads a saved model"):
        load_torch_file(tmp_path / f"folder{suffix}")


@pytest.mark.usefixtures("unchecked_types")
def test_arguments_of_another_type_are_named():
    for path in (None, 5, b"x.pth", []):
        with pytest.raises(TypeError, match=f"path must be a path, not a {type(path).__name__}"):
            load_torch_file(path)
    with pytest.raises(TypeError, match="entry has to be a name, like 'state_dict_ema', and it is a bool"):
        load_torch_file("x.pth", entry=True)


def test_without_torch_it_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'not in .safetensors run pip install "repmlp_jax\[torch\]"'):
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
    torch.save({"weight": torch.zeros(2), "epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds no state_dict of tensors, but \{'epoch': int\}"):
        load_torch_file(tmp_path / "other.pth")
    torch.save({0: torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth holds no state_dict: its keys are not names, like 0"):
        load_torch_file(tmp_path / "other.pth")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"program.pt holds more than weights, which was not executed: .* TorchScript"):
        load_torch_file(tmp_path / "program.pt")
