"""CIFAR-10 from a local HTTP server to arrays: downloaded, verified, prepared and read back bit for bit."""

import functools
import hashlib
import io
import logging
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import patience
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from repmlp_jax.data import prepare_cifar10 as preparation
from repmlp_jax.data.cifar10 import CLASS_NAMES, MEAN, STD, load_cifar10
from repmlp_jax.data.prepare_cifar10 import ARCHIVE_SHA256, ARCHIVE_SIZE, Cifar10, prepare_cifar10

RECORDS_PER_FILE = 20
# The order in which a real archive stores its members is not the order in which they are read.
TRAIN_FILES = [f"data_batch_{number}.bin" for number in (1, 3, 4, 5, 2)]


class ArchiveServer(ThreadingHTTPServer):
    """Serves an archive, counts the requests, and may close the connection after `stop_after` bytes."""

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), ArchiveHandler)
        self.content = content
        self.requests = 0
        self.stop_after = len(content)

    @property
    def archive(self) -> dict:
        return {
            "url": f"http://127.0.0.1:{self.server_address[1]}/cifar-10-binary.tar.gz",
            "size": len(self.content),
            "sha256": hashlib.sha256(self.content).hexdigest(),
        }


class ArchiveHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.stop_after])

    def log_message(self, *arguments):
        pass


def make_archive(records: dict[str, np.ndarray]) -> bytes:
    files = {name: content.tobytes() for name, content in records.items()}
    files["batches.meta.txt"] = "".join(f"{name}\n" for name in CLASS_NAMES).encode() + b"\n"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def records() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    records = {}
    for name in [*TRAIN_FILES, "test_batch.bin"]:
        records[name] = generator.integers(0, 256, size=(RECORDS_PER_FILE, 3073), dtype=np.uint8)
        records[name][:, 0] = generator.integers(0, 10, size=RECORDS_PER_FILE)
    return records


@pytest.fixture
def server(records, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ArchiveServer(make_archive(records)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def load_from_server(server, monkeypatch):
    """`load_cifar10`, downloading from the local server."""
    from_server = functools.partial(prepare_cifar10, **server.archive)
    monkeypatch.setattr(preparation, "prepare_cifar10", from_server)
    return load_cifar10


def expected_examples(records: dict[str, np.ndarray], split: str) -> dict[str, tuple[np.ndarray, int]]:
    """Pixel by pixel from the format's definition: a label, then 1024 red, 1024 green and 1024 blue bytes."""
    names = sorted(TRAIN_FILES) if split == "train" else ["test_batch.bin"]
    examples = {}
    for index, record in enumerate(np.concatenate([records[name] for name in names])):
        planes = [record[1 + 1024 * channel :][:1024].reshape(32, 32) for channel in range(3)]
        examples[f"{split}_{index:05d}"] = np.stack(planes, axis=-1), int(record[0])
    return examples


def folder_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("split", ["train", "test"])
def test_plain_tfds_opens_what_was_prepared(split, records, server, tmp_path):
    folder = prepare_cifar10(tmp_path, **server.archive)
    assert folder == tmp_path / "cifar10" / "3.0.2"

    source = tfds.data_source("cifar10", split=split, data_dir=tmp_path)
    expected = expected_examples(records, split)
    assert sorted(example["id"].decode() for example in source) == sorted(expected)
    for example in source:
        image, label = expected[example["id"].decode()]
        assert example["label"] == label
        assert example["image"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], image)


def test_features_are_those_of_tfds(server, tmp_path):
    prepare_cifar10(tmp_path, **server.archive)
    builder = tfds.builder("cifar10", data_dir=tmp_path)
    assert type(builder) is tfds.builder_cls("cifar10")
    assert tuple(builder.info.features["label"].names) == CLASS_NAMES
    assert repr(builder.info.features) == repr(tfds.builder("cifar10", data_dir=tmp_path / "none").info.features)
    assert builder.info.supervised_keys == ("image", "label")


def test_load_downloads_prepares_and_returns_every_example(records, load_from_server, tmp_path):
    data = load_from_server(tmp_path)
    assert list(data) == ["train", "test"]
    for split, (images, labels) in data.items():
        source = tfds.data_source("cifar10", split=split, data_dir=tmp_path)
        expected = expected_examples(records, split)
        in_order = [expected[example["id"].decode()] for example in source]
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        np.testing.assert_array_equal(images, np.stack([image for image, _ in in_order]))
        np.testing.assert_array_equal(labels, [label for _, label in in_order])


def test_reading_in_several_parts_changes_nothing(load_from_server, monkeypatch, tmp_path):
    whole = load_from_server(tmp_path)
    monkeypatch.setattr("repmlp_jax.data.cifar10.EXAMPLES_PER_READ", 7)
    for split, (images, labels) in load_from_server(tmp_path).items():
        np.testing.assert_array_equal(images, whole[split][0])
        np.testing.assert_array_equal(labels, whole[split][1])


def test_data_dir_defaults_to_the_environment_at_call_time(load_from_server, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "from_variable"))
    assert load_from_server()["train"][0].shape == (100, 32, 32, 3)
    assert (tmp_path / "from_variable" / "cifar10" / "3.0.2").is_dir()

    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_from_server()["test"][0].shape == (20, 32, 32, 3)
    assert (tmp_path / "tensorflow_datasets" / "cifar10" / "3.0.2").is_dir()


def test_second_call_does_not_download_again(server, load_from_server, tmp_path):
    load_from_server(tmp_path)
    load_from_server(tmp_path)
    assert server.requests == 1


def test_archive_already_there_is_not_downloaded(server, tmp_path):
    archive = tmp_path / "downloads" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(server.content)
    prepare_cifar10(tmp_path, **server.archive)
    assert server.requests == 0


def test_nothing_temporary_is_left_behind(server, tmp_path):
    prepare_cifar10(tmp_path, **server.archive)
    assert folder_names(tmp_path) == {"cifar10", "downloads"}
    assert folder_names(tmp_path / "cifar10") == {"3.0.2"}
    assert folder_names(tmp_path / "downloads") == {"cifar-10-binary.tar.gz"}


def test_nothing_is_printed_or_logged_but_the_bars_of_tfds(server, load_from_server, tmp_path, capfd, caplog, recwarn):
    with caplog.at_level(logging.WARNING):
        load_from_server(tmp_path)
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Downloading" not in printed.err  # a bar is drawn on terminals alone
    assert not caplog.records
    assert not recwarn.list


def test_wrong_checksum_names_both_and_removes_the_file(server, tmp_path):
    archive = server.archive | {"sha256": "0" * 64}
    with pytest.raises(ValueError, match=f"{'0' * 64}.*{server.archive['sha256']}"):
        prepare_cifar10(tmp_path, **archive)
    assert not folder_names(tmp_path / "downloads")
    assert folder_names(tmp_path) == {"downloads"}


def test_wrong_archive_already_there_is_removed(server, tmp_path):
    archive = tmp_path / "downloads" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match="got 14 bytes"):
        prepare_cifar10(tmp_path, **server.archive)
    assert not archive.exists()
    prepare_cifar10(tmp_path, **server.archive)
    assert archive.read_bytes() == server.content


def test_truncated_download_is_refused_and_the_next_call_succeeds(server, tmp_path):
    server.stop_after = 1000
    with pytest.raises(ValueError, match=f"expected {len(server.content)} bytes .* got 1000 bytes"):
        prepare_cifar10(tmp_path, **server.archive)
    assert not folder_names(tmp_path / "downloads")

    server.stop_after = len(server.content)
    prepare_cifar10(tmp_path, **server.archive)
    assert server.requests == 2


def test_unreachable_server_gives_one_clear_error(server, load_from_server, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(FileNotFoundError) as failure:
        load_from_server(tmp_path)
    message = str(failure.value)
    assert str(tmp_path / "cifar10" / "3.0.2") in message
    assert f"downloading {server.archive['url']} failed" in message
    assert "Connection refused" in message
    assert "TFDS_DATA_DIR" in message
    assert "data_dir" in message
    assert failure.value.__suppress_context__
    assert not folder_names(tmp_path / "downloads")


def test_partial_record_is_refused(records, tmp_path):
    partial = records | {"data_batch_2.bin": records["data_batch_2.bin"].reshape(-1)[:-1]}
    content = make_archive(partial)
    archive = tmp_path / "downloads" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    archive.write_bytes(content)
    with pytest.raises(ValueError, match="cannot reshape"):
        prepare_cifar10(tmp_path, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    assert not (tmp_path / "cifar10" / "3.0.2").exists()


def test_dataset_folder_without_its_description_is_refused(server, tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "cifar10-train.array_record-00000-of-00001").write_bytes(b"half")
    with pytest.raises(FileExistsError, match="incomplete"):
        prepare_cifar10(tmp_path, **server.archive)
    assert server.requests == 0


PREPARE_AND_DIE = """
import os, sys
from repmlp_jax.data import prepare_cifar10 as preparation

from_array, left = preparation.Image.fromarray, [30]

def convert_thirty_then_die(image):
    left[0] -= 1
    if left[0] < 0:
        os._exit(9)
    return from_array(image)

preparation.Image.fromarray = convert_thirty_then_die
preparation.prepare_cifar10(sys.argv[1], url=sys.argv[2], size=int(sys.argv[3]), sha256=sys.argv[4])
"""

PREPARE = """
import random, sys
random.seed(0)
from repmlp_jax.data.prepare_cifar10 import prepare_cifar10
prepare_cifar10(sys.argv[1], url=sys.argv[2], size=int(sys.argv[3]), sha256=sys.argv[4])
"""


def start_python(code: str, data_dir: Path, archive: dict) -> subprocess.Popen:
    arguments = [data_dir, archive["url"], archive["size"], archive["sha256"]]
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], cwd=Path(__file__).parents[2])


@pytest.mark.slow
def test_preparation_killed_halfway_is_not_taken_for_prepared(server, tmp_path, load_from_server):
    assert start_python(PREPARE_AND_DIE, tmp_path, server.archive).wait(patience.seconds(60)) == 9
    assert any(name.startswith("incomplete.") for name in folder_names(tmp_path))
    assert not (tmp_path / "cifar10" / "3.0.2").exists()

    assert load_from_server(tmp_path)["train"][0].shape == (100, 32, 32, 3)
    assert server.requests == 1


@pytest.mark.slow
def test_processes_preparing_at_once_agree(server, tmp_path, load_from_server):
    processes = [start_python(PREPARE, tmp_path, server.archive) for _ in range(3)]
    assert [process.wait(patience.seconds(60)) for process in processes] == [0, 0, 0]
    assert folder_names(tmp_path) == {"cifar10", "downloads"}
    assert load_from_server(tmp_path)["train"][0].shape == (100, 32, 32, 3)


def test_result_of_a_faster_process_is_used(server, tmp_path, monkeypatch):
    prepare = Cifar10.download_and_prepare

    def prepare_but_be_overtaken(builder, **arguments):
        prepare(builder, **arguments)
        monkeypatch.setattr(Cifar10, "download_and_prepare", prepare)
        prepare_cifar10(tmp_path, **server.archive)
        (tmp_path / "cifar10" / "3.0.2" / "of_the_faster_process").touch()

    monkeypatch.setattr(Cifar10, "download_and_prepare", prepare_but_be_overtaken)
    folder = prepare_cifar10(tmp_path, **server.archive)
    assert "of_the_faster_process" in folder_names(folder)
    assert folder_names(tmp_path) == {"cifar10", "downloads"}


def test_archive_constants_are_those_tfds_registers():
    assert ARCHIVE_SIZE == 170_052_171
    assert ARCHIVE_SHA256 == "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def test_order_is_that_of_tfds(server, tmp_path):
    """TFDS orders by a hash of split and index; its own cifar10 begins with train_16399, train_01680."""
    hasher = hashing.Hasher("train")
    by_hash = sorted(range(50_000), key=hasher.hash_key)
    assert by_hash[:2] == [16399, 1680]

    prepare_cifar10(tmp_path, **server.archive)
    source = tfds.data_source("cifar10", split="train", data_dir=tmp_path)
    expected = [f"train_{index:05d}" for index in by_hash if index < 100]
    assert [example["id"].decode() for example in source] == expected


@pytest.mark.slow
def test_real_data(shared_datasets):
    data = load_cifar10(shared_datasets)
    for split, examples in (("train", 50_000), ("test", 10_000)):
        images, labels = data[split]
        assert images.shape == (examples, 32, 32, 3)
        assert images.dtype == np.uint8
        assert labels.shape == (examples,)
        assert labels.dtype == np.int32
        assert np.bincount(labels).tolist() == [examples // 10] * 10

    pixels = data["train"][0].reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(axis=0) / 255, MEAN, atol=5e-4)
    np.testing.assert_allclose(pixels.std(axis=0) / 255, STD, atol=3e-3)


def test_class_names_are_those_of_the_real_data(shared_datasets):
    builder = tfds.builder("cifar10", data_dir=shared_datasets)
    assert tuple(builder.info.features["label"].names) == CLASS_NAMES
