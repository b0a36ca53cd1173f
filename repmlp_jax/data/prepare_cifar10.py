"""Downloads CIFAR-10 and writes it as the TFDS dataset `cifar10`, without TensorFlow.

TFDS's own preparation needs TensorFlow to extract and read the archive and to encode arrays as PNG. Here NumPy reads
the archive, and TFDS gets Pillow images. The examples, their order and the folder are those of TFDS's own `cifar10`.
"""

import http.client
import os
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums
from tqdm.auto import tqdm

from repmlp_jax.local_path import local_path

VERSION = "3.0.2"

ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
_REGISTERED = checksums.load_url_infos(tfds.core.tfds_path("url_checksums", "cifar10.txt"))[ARCHIVE_URL]
ARCHIVE_SIZE = int(_REGISTERED.size)
ARCHIVE_SHA256 = _REGISTERED.checksum

ARCHIVE_FOLDER = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES = ("test_batch.bin",)

NETWORK_TIMEOUT_SECONDS = 30


def prepare_cifar10(
    data_dir: str | Path, *, url: str = ARCHIVE_URL, size: int = ARCHIVE_SIZE, sha256: str = ARCHIVE_SHA256
) -> Path:
    """Prepares CIFAR-10 for `tfds.data_source("cifar10", data_dir=data_dir)` unless it is prepared already.

    The archive is kept in `<data_dir>/downloads`, and the dataset is written to `<data_dir>/cifar10/3.0.2`. Both are
    written atomically, so a process may be killed, and several processes may prepare at the same time.

    Args:
        data_dir: folder of TFDS datasets.
        url: address of the binary version of CIFAR-10.
        size: size of the archive in bytes.
        sha256: SHA-256 of the archive in hexadecimal.

    Returns:
        The dataset's folder, `<data_dir>/cifar10/3.0.2`.

    Raises:
        FileNotFoundError: if the archive is not in `<data_dir>/downloads` and cannot be downloaded.
        FileExistsError: if the dataset's folder exists but is incomplete.
        ValueError: if the archive has another size or checksum (it is removed), or a file in it does not hold whole
            records.
    """
    data_dir = local_path(data_dir)
    dataset = data_dir / "cifar10" / VERSION
    if _is_prepared(dataset):
        return dataset
    if dataset.exists():
        raise FileExistsError(f"{dataset} holds no dataset_info.json, so it is incomplete: remove it first")

    archive = data_dir / "downloads" / url.rpartition("/")[2]
    if archive.exists():
        _check_archive(archive, size, sha256, origin=archive)
    else:
        try:
            _download(url, archive, size, sha256)
        except (OSError, http.client.HTTPException) as error:
            raise FileNotFoundError(
                f"CIFAR-10 is not prepared in {dataset}, and downloading {url} failed: {error}. "
                "Set TFDS_DATA_DIR (or pass data_dir) to a folder that holds the prepared dataset, "
                f"or put the archive at {archive}"
            ) from None

    dataset.parent.mkdir(parents=True, exist_ok=True)
    # TFDS's own incomplete folder is named by `random`, so processes with the same seed would share it.
    with TemporaryDirectory(prefix="incomplete.", dir=data_dir) as incomplete:
        builder = Cifar10(archive=archive, data_dir=incomplete, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        try:
            os.rename(builder.data_dir, dataset)
        except OSError:
            if not _is_prepared(dataset):  # Otherwise another process has prepared it.
                raise
    return dataset


# A type checker does not know a class that is looked up by its name.
class Cifar10(tfds.builder_cls("cifar10"), skip_registration=True):  # type: ignore[misc, call-arg]
    """TFDS's `cifar10` with the same features and examples, generated from the archive in memory."""

    VERSION = tfds.core.Version(VERSION)

    # TFDS would read the checksums with importlib_resources, which it does not install.
    url_infos = None

    def __init__(self, *, archive: Path, **kwargs):
        self.archive = archive
        super().__init__(**kwargs)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        (class_names,) = self._read_files("batches.meta.txt")
        self.info.features["label"].names = class_names.decode().split()
        return {
            "train": self._generate_examples("train_", TRAIN_FILES),
            "test": self._generate_examples("test_", TEST_FILES),
        }

    def _generate_examples(self, split_prefix: str, filepaths: tuple[str, ...]) -> Iterator[tuple[int, dict]]:
        # A record is a label of one byte, then the red, the green and the blue pixels.
        records = np.frombuffer(b"".join(self._read_files(*filepaths)), np.uint8).reshape(-1, 1 + 3 * 32 * 32)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        # TFDS shuffles by the index, so it must be that of TFDS's own builder.
        for index, (image, label) in enumerate(zip(images, records[:, 0].tolist(), strict=True)):
            yield index, {"id": f"{split_prefix}{index:05d}", "image": Image.fromarray(image), "label": label}

    def _read_files(self, *names: str) -> Iterator[bytes]:
        with tarfile.open(self.archive) as archive:
            for name in names:
                yield archive.extractfile(f"{ARCHIVE_FOLDER}/{name}").read()  # type: ignore[union-attr]  # they are files

    def _log_download_bytes(self) -> None:
        """Does nothing; TFDS would print an unknown size and the temporary folder."""

    def _log_download_done(self) -> None:
        """Does nothing; TFDS would print the temporary folder as the final one."""


def _is_prepared(dataset: Path) -> bool:
    return (dataset / "dataset_info.json").is_file()


def _download(url: str, archive: Path, size: int, sha256: str) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="incomplete.", dir=archive.parent) as incomplete:
        partial = Path(incomplete) / archive.name
        with (
            urllib.request.urlopen(url, timeout=NETWORK_TIMEOUT_SECONDS) as response,
            tqdm.wrapattr(response, "read", total=size, desc=f"Downloading {archive.name}", disable=None) as counted,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(counted, file)
        _check_archive(partial, size, sha256, origin=url)
        partial.replace(archive)


def _check_archive(archive: Path, size: int, sha256: str, origin: str | Path) -> None:
    found = checksums.compute_url_info(archive)
    if (found.size, found.checksum) != (size, sha256):
        archive.unlink()
        raise ValueError(
            f"{origin}: expected {size} bytes with SHA-256 {sha256}, "
            f"got {found.size:d} bytes with SHA-256 {found.checksum}; the file was removed"
        )
