"""Packs CIFAR-10 into one file of encoded pictures, for a machine that has neither TFDS nor its readers.

    python benchmarks/pack_cifar10.py cifar10.npz
    python train.py --config=configs/cifar.py --config.data_dir=cifar10.npz

It reads the dataset as TFDS prepared it, in the folder that TFDS_DATA_DIR names, and encodes nothing again.
"""

import argparse

import tensorflow_datasets as tfds
from tqdm import tqdm

from repmlp_jax.data.folder import data_folder
from repmlp_jax.data.packed import SPLITS, write_packed
from repmlp_jax.data.prepare_cifar10 import VERSION


def main():
    """Reads, packs and says how large the file is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="file to write, .npz")
    parser.add_argument("--data_dir", help="folder of TFDS datasets; by default TFDS_DATA_DIR")
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    decoders = {"image": tfds.decode.SkipDecoding()}
    data_dir = data_folder(options.data_dir)
    sources = tfds.data_source(f"cifar10:{VERSION}", data_dir=data_dir, download=False, decoders=decoders)
    splits = {
        split: [(example["image"], int(example["label"])) for example in tqdm(sources[split], split)]
        for split in SPLITS
    }
    write_packed(options.out, splits, overwrite=options.overwrite)
    print(f"written: {options.out}, {sum(map(len, splits.values())):,} pictures")


if __name__ == "__main__":
    main()
