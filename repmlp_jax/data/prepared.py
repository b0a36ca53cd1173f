"""Prepared TFDS datasets, opened without TensorFlow; one clear error for what is missing, incomplete or damaged."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from repmlp_jax.data.folder import data_folder
from repmlp_jax.nearest import nearest

HOW_TO_PREPARE = """\
Prepare it, where TensorFlow is installed, by `tfds build {name} --file_format=array_record --data_dir={data_dir}` \
(one of your own as in docs/how_to/data.md), or name another folder by data_dir or TFDS_DATA_DIR"""
HOW_TO_PREPARE_IMAGENET = """\
TFDS does not download it: register at https://image-net.org/download-images, put ILSVRC2012_img_train.tar and \
ILSVRC2012_img_val.tar into {data_dir}/downloads/manual, and run, where TensorFlow is installed, \
`tfds build imagenet2012 --file_format=array_record --data_dir={data_dir}`"""
DESCRIPTIONS = ("dataset_info.json", "features.json")


class Records(Sequence[Any]):
    """The records of a split, with random access; a record that cannot be read names its file.

    Args:
        source: of TFDS.
        files: the split's files and the number of records in each, in order.
    """

    def __init__(self, source: Any, files: Sequence[tuple[str, int]]):
        self._source = source
        self._files = files

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError(f"there is no record {index} of {len(self)}")
        try:
            return self._source[index]
        except Exception as error:
            what = f"record {index} of {len(self)} cannot be read"
            raise ValueError(f"{self._file_of(index)} is damaged: {what} ({_reason(error)})") from error

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Several records at once, which is faster."""
        try:
            return list(self._source.__getitems__(indices))
        except Exception:
            return [self[index] for index in indices]  # names the record

    def _file_of(self, index: int) -> str:
        ends = np.cumsum([records for _, records in self._files])
        return self._files[int(np.searchsorted(ends, index, side="right"))][0]


def open_prepared(
    name: str, data_dir: str | Path | None = None, *, undecoded: Iterable[str] = ()
) -> tuple[Any, dict[str, Records]]:
    """Opens a prepared dataset; it reads the description and the ends of the files.

    Args:
        name: of the dataset; a version may follow a colon.
        data_dir: folder of TFDS datasets; None: the environment's TFDS_DATA_DIR, or TFDS's default.
        undecoded: features of which the bytes are given.

    Returns:
        TFDS's description of the dataset, and split → records.

    Raises:
        TypeError: if `name` is not a string.
        FileNotFoundError: if the dataset or a file of it is not there; the message says how to prepare it.
        ValueError: if a file is damaged, or the dataset is prepared without random access.
    """
    import tensorflow_datasets as tfds

    if not isinstance(name, str):
        raise TypeError(f"the name of a dataset must be a string, not {name!r}")
    data_dir = data_folder(data_dir)
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        prepared = builder.is_prepared()
    except tfds.core.DatasetNotFoundError:
        prepared = False
    except Exception as error:  # of TFDS, JSON or protobuf
        _check_descriptions(name, data_dir)
        if _lacking(name, data_dir):
            raise FileNotFoundError(_not_prepared(name, data_dir)) from None
        raise ValueError(f"{name!r} cannot be opened as a TFDS dataset: {error}") from error
    if not prepared:
        raise FileNotFoundError(_not_prepared(name, data_dir))
    info = builder.info
    if info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{builder.data_dir} is prepared as {info.file_format.value}, which cannot be read in any order; "
            f"prepare it again with file_format='array_record'"
        )
    decoders = {feature: tfds.decode.SkipDecoding() for feature in undecoded if feature in info.features}
    how = _how_to_prepare(name, data_dir)
    return info, {split: _open_split(builder, split, decoders, how) for split in info.splits}


def check_features(name: str, info: Any, features: Iterable[str]):
    """Raises ValueError if a dataset lacks a feature."""
    if missing := sorted(set(features) - set(info.features)):
        raise ValueError(f"{name} has no feature {missing[0]!r}; it has {', '.join(map(repr, info.features))}")


def check_splits(name: str, there: Iterable[str], splits: Iterable[str]):
    """Raises ValueError if a dataset lacks a split."""
    if missing := sorted(set(splits) - set(there)):
        raise ValueError(f"{name} has no split {missing[0]!r}; it has {', '.join(map(repr, there))}")


def _open_split(builder, split: str, decoders: Mapping[str, Any], how: str) -> Records:
    from array_record.python.array_record_module import ArrayRecordReader

    files = [(str(part.filename), part.examples_in_shard) for part in builder.info.splits[split].file_instructions]
    for file, records in files:
        if not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}, which split {split!r} needs. {how}")
        try:
            reader = ArrayRecordReader(file)
            found = reader.num_records()
            reader.close()
        except Exception as error:
            raise ValueError(f"{file} is damaged ({_reason(error)}): remove its folder. {how}") from error
        if found != records:
            raise ValueError(f"{file} is damaged, with {found} of {records} records: remove its folder. {how}")
    return Records(builder.as_data_source(split, decoders=decoders or None), files)


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _descriptions(name: str, data_dir: Path) -> list[Path]:
    """The files that describe the prepared versions of a dataset."""
    dataset = name.partition(":")[0]
    return sorted(path for path in (data_dir / dataset).rglob("*.json") if path.name in DESCRIPTIONS)


def _lacking(name: str, data_dir: Path) -> list[Path]:
    """The descriptions that its versions lack."""
    found = _descriptions(name, data_dir)
    return [path.parent / file for path in found for file in DESCRIPTIONS if path.parent / file not in found]


def _check_descriptions(name: str, data_dir: Path):
    """Raises ValueError if a description is not what TFDS wrote."""
    for file in _descriptions(name, data_dir):
        try:
            is_sound = isinstance(content := json.loads(file.read_text()), dict) and bool(content)
        except ValueError:
            is_sound = False
        if not is_sound:
            raise ValueError(f"{file} is empty or damaged: remove its folder. {_how_to_prepare(name, data_dir)}")


def _not_prepared(name: str, data_dir: Path) -> str:
    dataset = name.partition(":")[0]
    there = sorted({path.parents[1].name for path in data_dir.glob("*/*/dataset_info.json")})
    if lacking := _lacking(name, data_dir):
        known = f": there is no {lacking[0]}"
    elif dataset in there:
        known = (
            f"; there is {', '.join(str(path.parent) for path in sorted((data_dir / dataset).glob('*/features.json')))}"
        )
    else:
        known = f"; the nearest there is {nearest(dataset, there)!r}" if there else ", nor is any other dataset"
    return f"{name} is not prepared in {data_dir}{known}. {_how_to_prepare(name, data_dir)}"


def _how_to_prepare(name: str, data_dir: Path) -> str:
    how = HOW_TO_PREPARE_IMAGENET if name.partition(":")[0] == "imagenet2012" else HOW_TO_PREPARE
    return how.format(name=name, data_dir=data_dir)
