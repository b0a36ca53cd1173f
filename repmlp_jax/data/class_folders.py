"""A folder for the pictures of each class: `train/CLASS/*.jpg` and `val/CLASS/*.jpg`, or `CLASS/*.jpg` alone."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

from repmlp_jax.data.imagenet import GREY_MEAN, GREY_STD, EncodedImages
from repmlp_jax.data.picture_files import PictureFiles, pictures_in, visible
from repmlp_jax.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from repmlp_jax.listing import listed
from repmlp_jax.local_path import local_path

IN_NO_CLASS = "in no class"  # among the numbers of files that are left out
HELD_OUT = ("val", "valid", "validation", "test")  # The first that is there is evaluated on.


def load_folder(
    data_dir: str | Path | None, channels: int = 3, val_share: float = 0.0, *, needs_train: bool = True
) -> EncodedImages:
    """Opens pictures in folders that bear the names of their classes; it reads only the names.

    Args:
        data_dir: a folder with `train/CLASS/…`, and `val/CLASS/…`, `validation/CLASS/…` or `test/CLASS/…`. With
            `val_share`, one with `CLASS/…`. (`valid/` is `val/`; upper and lower case are the same.)
        channels: that pictures are decoded to, 3 (RGB) or 1 (grey).
        val_share: the share of each class that is held out for validation, at least one picture. A picture's name
            decides whether it is; what a share holds out, a larger one does, too.
        needs_train: if off, there may be no `train/`, and `CLASS/…` without `val_share` is all for validation.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if a split is missing, `val_share` is set and none is missing, there are fewer than two classes, a
            class has no picture or no name in UTF-8, or the splits have other classes; as `pictures_in`.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels={channels}: pictures are decoded to 3 channels (RGB), or 1 (grey)")
    if not data_dir:
        raise ValueError("dataset='folder' needs data_dir: the folder that holds train/CLASS/… and val/CLASS/…")
    folder = local_path(data_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}, which data_dir names")
    # Where the classes may lie in the folder itself, one may be called "test": then it holds no folders.
    may_be_flat = bool(val_share) or not needs_train
    inside = {name.lower(): folder / name for name in _folders(folder) if not may_be_flat or _folders(folder / name)}
    train, held_out = inside.get("train"), next((inside[name] for name in HELD_OUT if name in inside), None)
    if held_out and (train or not needs_train):
        if val_share and needs_train:
            raise ValueError(
                f"val_share={val_share:g} holds out pictures of {folder}/CLASS, and there are train/ and "
                f"{held_out.name}/: set val_share=0"
            )
        validation = _read(held_out)
        training = _read(train) if train else PictureFiles(folder, dict.fromkeys(validation.files, ()), {})
        _check_same(training, validation)
        _check_number(validation)
    elif needs_train and (not val_share or train or held_out):
        lacking = f"no train/ beside {held_out.name}/" if held_out else "no val/ or test/"
        there = listed(f"{name}/" for name in _folders(folder)) or "no folder"
        hint = f"val_share, such as {val_share or 0.2:g}, holds out a share of the pictures in data_dir/CLASS"
        if train and not held_out and _folders(train):
            hint += f": set data_dir={train}"
        raise ValueError(f"{folder} holds {lacking}, but {there}; {hint}")
    else:
        pictures = _read(folder)
        _check_number(pictures)
        training, validation = _split(pictures, val_share if needs_train or val_share else 1.0)
    mean, std = (GREY_MEAN, GREY_STD) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    names = tuple(validation.files)
    return EncodedImages(training, validation, len(names), names, mean, std, channels)


def _read(folder: Path) -> PictureFiles:
    """The pictures in the folders of a folder, each of which is a class."""
    files, left_out = {}, Counter[str]()
    for name in _folders(folder):
        if re.search("[\udc80-\udcff]", name):  # what Python reads bytes as that are not UTF-8
            raise ValueError(f"the name of the class {name!r} in {folder} is not in UTF-8: rename its folder")
        files[name], others = pictures_in(folder / name)
        left_out += others
    loose = sum(not (folder / name).is_dir() for name in visible(os.listdir(folder)))
    if empty := [name for name in files if not files[name]]:
        raise ValueError(f"{len(empty)} of the {len(files)} classes in {folder} have no picture: {_quoted(empty)}")
    return PictureFiles(folder, files, left_out + Counter({IN_NO_CLASS: loose}))


def _check_number(pictures: PictureFiles):
    """Refuses fewer than two classes."""
    folder, files = pictures.folder, pictures.files
    if len(files) < 2:
        raise ValueError(
            f"{folder} holds {len(files)} folders of classes{': ' if files else ''}{_quoted(files)}, and "
            f"{pictures.left_out.get(IN_NO_CLASS, 0)} files beside them: a classifier needs two classes or more, each "
            f"with a folder of pictures, {folder}/CLASS/…"
        )


def _check_same(training: PictureFiles, validation: PictureFiles):
    """Refuses splits of other classes."""
    for one, other in ((training, validation), (validation, training)):
        if strays := [name for name in one.files if name not in other.files]:
            raise ValueError(
                f"{other.folder} lacks {len(strays)} of the {len(one.files)} classes of {one.folder}: {_quoted(strays)}"
            )


def _split(pictures: PictureFiles, share: float) -> tuple[PictureFiles, PictureFiles]:
    """The training and the validation pictures; with a share of 1 all are for validation."""
    folder, files = pictures.folder, pictures.files
    if few := [name for name in files if len(files[name]) < 2 and share < 1]:
        raise ValueError(
            f"val_share={share:g} holds out pictures of each class, and {len(few)} of the {len(files)} classes in "
            f"{folder} have only one: {_quoted(few)}"
        )

    def drawn(file):
        return hashlib.sha256(os.fsencode(os.path.relpath(file, folder))).digest()

    held_out = {}
    for name, of_class in files.items():
        count = len(of_class) if share == 1 else min(max(1, round(share * len(of_class))), len(of_class) - 1)
        held_out[name] = sorted(sorted(of_class, key=drawn)[:count])
    rest = {name: sorted(set(of_class).difference(held_out[name])) for name, of_class in files.items()}
    return PictureFiles(folder, rest, pictures.left_out), PictureFiles(folder, held_out, {})


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, sorted."""
    return sorted(name for name in visible(os.listdir(folder)) if (folder / name).is_dir())


def _quoted(names) -> str:
    return listed(map(repr, names))
