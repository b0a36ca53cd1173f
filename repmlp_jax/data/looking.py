"""A look at pictures in folders before they are trained on: classes, numbers, and files that are damaged."""

import os

import numpy as np
from PIL import Image

from repmlp_jax.data.decoding import decode
from repmlp_jax.data.imagenet import EncodedImages
from repmlp_jax.data.picture_files import PictureFiles
from repmlp_jax.data.stream import BadExample
from repmlp_jax.listing import listed
from repmlp_jax.progress import progress_bar

LOOKED_AT = 10_000  # files of a split, of which only the header and the end are read: that takes seconds
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what is in the last bytes of a whole file
LAST = 32


def look(images: EncodedImages) -> str:
    """What a training has before it, in lines: classes, pictures of each split, and what is left out or damaged.

    Args:
        images: of `load_folder`.

    Raises:
        ValueError: if a validation picture is damaged: an evaluation counts every picture.
    """
    training, validation = images.train, images.validation
    assert isinstance(training, PictureFiles)
    assert isinstance(validation, PictureFiles)
    lines = [f"classes   {images.num_classes}: {listed(map(repr, images.class_names), shown=10)}"]
    for split, pictures in (("train", training), ("val", validation)):
        counts = {len(files) for files in pictures.files.values()}
        each = "to".join(f" {count:,} " for count in sorted({min(counts), max(counts)}))
        lines.append(f"{split:10}{len(pictures):,} pictures in {pictures.folder},{each}of a class")
        if others := [f"{count:,} {suffix}" for suffix, count in pictures.left_out.items() if count]:
            lines.append(f"{'':10}other files there: {listed(others)}")
    if found := damaged(validation):
        raise ValueError(f"{_said(found, validation)}: an evaluation counts every picture, so remove or replace them")
    if found := damaged(training):
        lines.append(f"{'damaged':10}{_said(found, training)}: the training takes others in their place")
    return "\n".join(lines)


def damaged(pictures: PictureFiles) -> list[str]:
    """The files that hold no picture, each with the reason, of those that are looked at, spread evenly over a split."""
    indices = np.linspace(0, len(pictures) - 1, min(len(pictures), LOOKED_AT)).astype(int)
    bar = progress_bar(indices, desc=f"looking at {pictures.folder}", unit=" files", delay=2, leave=False)
    return [reason for index in bar if (reason := _damage(pictures, int(index)))]


def _damage(pictures, index) -> str:
    path = pictures.paths[index]
    try:
        if os.path.isfile(path):  # a pipe might never end
            with open(path, "rb") as file, Image.open(file) as image:
                file.seek(max(0, os.path.getsize(path) - LAST))
                if ENDS.get(image.format or "", b"") in file.read():
                    return ""
    except Exception:  # A damaged header raises any kind of error.
        pass
    # It looks damaged, but a file may go on behind its picture, and be of a format that only OpenCV knows.
    try:
        decode(pictures[index]["image"])
    except BadExample as error:
        return str(error) if path in str(error) else f"{path}: {error}"
    return ""


def _said(found, pictures) -> str:
    some = "" if len(pictures) <= LOOKED_AT else f"{LOOKED_AT:,} of the "
    return f"{len(found):,} of {some}{len(pictures):,} pictures in {pictures.folder} cannot be read: {listed(found, 3)}"
