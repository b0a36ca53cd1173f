"""CIFAR-10 as NumPy arrays, read through TensorFlow Datasets without TensorFlow."""

from pathlib import Path

import numpy as np

from repmlp_jax.data.folder import data_folder
from repmlp_jax.data.packed import read_packed
from repmlp_jax.data.prepared import open_prepared
from repmlp_jax.progress import progress_bar
from repmlp_jax.storage.preprocessing import CIFAR10_MEAN, CIFAR10_STD

MEAN, STD = CIFAR10_MEAN, CIFAR10_STD
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

EXAMPLES_PER_READ = 1000


def load_cifar10(data_dir: str | Path | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads CIFAR-10 into memory; downloads and prepares it first if necessary.

    Args:
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or `~/tensorflow_datasets`. Or a file
            `.npz` that `benchmarks/pack_cifar10.py` wrote, which does not need TFDS.

    Returns:
        `{"train": (images, labels), "test": (images, labels)}`: images uint8 (examples, 32, 32, 3) in RGB, labels int32
        (examples,), indices into `CLASS_NAMES`; 50,000 and 10,000 examples, in TFDS's order.

    Raises:
        FileNotFoundError: if CIFAR-10 is not prepared in `data_dir` and cannot be downloaded.
        FileExistsError: if the dataset's folder exists but is incomplete.
        ValueError: if the downloaded archive is not the expected one, or CIFAR-10 is damaged, or prepared in a format
            without random access, such as tfrecord.
    """
    if data_dir is not None and Path(data_dir).suffix == ".npz":
        return read_packed(data_dir)

    from repmlp_jax.data.prepare_cifar10 import VERSION, prepare_cifar10

    data_dir = data_folder(data_dir)
    prepare_cifar10(data_dir)
    _, splits = open_prepared(f"cifar10:{VERSION}", data_dir)
    return {split: _read_all(splits[split], f"Reading CIFAR-10 {split}") for split in ("train", "test")}


def _read_all(source, description: str) -> tuple[np.ndarray, np.ndarray]:
    images, labels = [], []
    with progress_bar(total=len(source), desc=description, unit=" images", delay=2) as progress:
        for start in range(0, len(source), EXAMPLES_PER_READ):
            # Reading many records at once is three times as fast as indexing them one by one.
            examples = source.__getitems__(range(start, min(start + EXAMPLES_PER_READ, len(source))))
            images += [example["image"] for example in examples]
            labels += [example["label"] for example in examples]
            progress.update(len(examples))
    return np.stack(images), np.array(labels, dtype=np.int32)
