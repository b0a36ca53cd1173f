"""Pictures in folders of their classes: which are found, how they are split, and what is refused."""

import functools
import os
import pickle
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from repmlp_jax.data import open_dataset
from repmlp_jax.data.class_folders import load_folder
from repmlp_jax.data.imagenet import evaluation_example, training_example
from repmlp_jax.data.looking import look
from repmlp_jax.data.stream import BadExample, evaluation_stream, make_stream


def write(folder, *paths):
    """Writes a small picture for each path, none of which is another's."""
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image = np.random.default_rng(len(path)).integers(0, 256, (10, 12, 3), np.uint8)
        cv2.imwrite(str(file.with_suffix(".png")), image)
        file.with_suffix(".png").rename(file)
    return folder


SPLITS = ("train/ant/1.png", "train/ant/2.png", "train/bee/1.png", "val/bee/3.png", "val/ant/3.png")


def test_classes_are_the_names_of_the_folders_in_order(tmp_path):
    images = open_dataset("folder", write(tmp_path, *SPLITS, "Train2/cow/1.png"))
    assert (images.num_classes, images.class_names) == (2, ("ant", "bee"))
    assert [images.train[index]["label"] for index in range(3)] == [0, 0, 1]
    assert images.validation.names() == ["ant/3.png", "bee/3.png"]
    assert images.train[2]["image"] == (tmp_path / "train/bee/1.png").read_bytes()
    assert len(open_dataset("folder", tmp_path, 1).mean) == 1


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (("test",), "test"),
        (("validation", "test"), "validation"),
        (("valid", "test"), "valid"),
        (("test", "Val"), "Val"),
    ],
)
def test_the_first_held_out_split_is_evaluated_on(tmp_path, there, expected):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("Train", *there) for name in ("ant", "bee")))
    images = load_folder(tmp_path)
    assert (images.train.folder, images.validation.folder) == (tmp_path / "Train", tmp_path / expected)


def test_pictures_are_found_by_their_suffix_in_nested_and_linked_folders_but_not_hidden_ones(tmp_path):
    write(tmp_path, *SPLITS, "train/ant/deep/in/A.JPG", "train/ant/.hidden.png", "train/ant/.cache/1.png", "far/1.png")
    write(tmp_path, "train/.ipynb_checkpoints/1.png", "val/.DS_Store.png", "train/loose.png")
    (tmp_path / "train/ant/notes.TXT").write_text("")
    (tmp_path / "train/ant/Makefile").write_text("")
    (tmp_path / "train/bee/linked").symlink_to(tmp_path / "far")
    (tmp_path / "train/bee/one.png").symlink_to(tmp_path / "far/1.png")
    images = load_folder(tmp_path)
    found = ["ant/1.png", "ant/2.png", "ant/deep/in/A.JPG", "bee/1.png", "bee/linked/1.png", "bee/one.png"]
    assert images.train.names() == found
    assert images.train.left_out == {".txt": 1, "without suffix": 1, "in no class": 1}
    (line,) = (line for line in look(images).splitlines() if "other files there: " in line)
    assert sorted(line.split(": ")[1].split(", ")) == ["1 .txt", "1 in no class", "1 without suffix"]
    (tmp_path / "train/bee/again").symlink_to(tmp_path / "train/bee")
    with pytest.raises(ValueError, match=r"train/bee/again is .*train/bee, whose pictures are read already"):
        load_folder(tmp_path)


def test_a_share_of_each_class_is_held_out_by_the_names(tmp_path):
    many = [f"{name}/{number}.png" for name, count in (("ant", 20), ("bee", 2), ("test", 4)) for number in range(count)]
    write(tmp_path, *many)
    split = {share: load_folder(tmp_path, val_share=share) for share in (0.1, 0.25, 0.5)}
    for images in split.values():
        assert sorted(images.train.names() + images.validation.names()) == sorted(many)
    counts = {share: [len(files) for files in images.validation.files.values()] for share, images in split.items()}
    assert counts == {0.1: [2, 1, 1], 0.25: [5, 1, 1], 0.5: [10, 1, 2]}
    held_out = [set(images.validation.names()) for images in split.values()]
    assert held_out[0] < held_out[1] < held_out[2]
    tmp_path.rename(moved := tmp_path.with_name(f"{tmp_path.name} moved"))
    assert set(load_folder(moved, val_share=0.5).validation.names()) == held_out[2]


def test_an_evaluation_needs_no_training_pictures(tmp_path):
    write(tmp_path, "ant/1.png", "ant/2.png", "bee/1.png", "new/test/ant/1.png", "new/test/bee/1.png")
    for share in (0.0, 0.5):
        images = load_folder(tmp_path / "new", val_share=share, needs_train=False)
        assert (len(images.train), images.validation.names()) == (0, ["ant/1.png", "bee/1.png"])
    (tmp_path / "new").rename(tmp_path.with_name(f"{tmp_path.name} new"))
    images = load_folder(tmp_path, needs_train=False)
    assert (len(images.train), len(images.validation)) == (0, 3)


@pytest.mark.parametrize(
    ("paths", "options", "message"),
    [
        ((), {}, r"holds no val/ or test/, but no folder; val_share, such as 0.2"),
        (("ant/1.png", "bee/1.png"), {}, r"holds no val/ or test/, but ant/, bee/; val_share"),
        (("val/ant/1.png", "val/bee/1.png"), {}, "holds no train/ beside val/, but val/"),
        (
            ("train/ant/1.png",),
            dict(val_share=0.5),
            "no val/ or test/, but train/; val_share, such as 0.5, .*=.*/train$",
        ),
        (("train/ant/1.png",), {}, "no val/ or test/, but train/; val_share, such as 0.2, .*: set data_dir=.*/train$"),
        (SPLITS, dict(val_share=0.2), r"val_share=0.2 holds out .*/CLASS, and there are train/ and val/: set"),
        (("train/1.png", "val/1.png"), {}, r"val holds 0 folders of classes, and 1 files beside them"),
        (("ant/1.png",), dict(val_share=0.2), "holds 1 folders of classes: 'ant', and 0 files beside them: a classif"),
        (("ant/1.png", "bee/1.png", "bee/2.png"), dict(val_share=0.2), "1 of the 2 classes in .* only one: 'ant'"),
        ((*SPLITS, "train/cow/1.png"), {}, "val lacks 1 of the 3 classes of .*/train: 'cow'"),
        (("train/ant/1.png", "train/bee/1.png", "val/ant/1.png"), {}, "val lacks 1 of the 2 classes of .*train: 'bee'"),
        ((*SPLITS, "val/cow/1.png", "val/dog/1.png"), {}, "train lacks 2 of the 4 classes of .*/val: 'cow', 'dog'"),
        ((*SPLITS, "train/cow/1.txt", "val/cow/1.png"), {}, "1 of the 3 classes in .*/train have no picture: 'cow'"),
        (SPLITS, dict(channels=2), r"channels=2: pictures are decoded to 3 channels \(RGB\), or 1"),
    ],
)
def test_folders_that_cannot_be_trained_on_are_one_error(tmp_path, paths, options, message):
    with pytest.raises(ValueError, match=message):
        load_folder(write(tmp_path, *paths), **options)


def test_a_class_whose_name_cannot_be_written_is_an_error(tmp_path):
    folder = write(tmp_path, "ant/1.png", "bee/1.png")
    (folder / "bee").rename(folder / os.fsdecode(b"b\xe9e"))
    with pytest.raises(ValueError, match=r"class 'b\\udce9e' in .* is not in UTF-8: rename its folder"):
        load_folder(folder, val_share=0.5)


def test_a_folder_that_is_not_there_or_not_named_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"there is no folder {re.escape(str(tmp_path))}/nowhere, which"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no dataset is called 'folders'; the nearest is 'folder'"):
        open_dataset("folders", tmp_path)
    with pytest.raises(ValueError, match="dataset='folder' needs data_dir: the folder that holds train/CLASS"):
        load_folder("")


def test_unreadable_files_are_skipped_in_training_and_end_an_evaluation(tmp_path):
    images = load_folder(write(tmp_path, *SPLITS, "val/ant/gone.png"))
    (tmp_path / "train/ant/2.png").write_bytes((tmp_path / "train/ant/2.png").read_bytes()[:100])
    (tmp_path / "val/ant/gone.png").unlink()
    train, evaluate = (functools.partial(one, size=(8, 8)) for one in (training_example, evaluation_example))
    with make_stream(images.train, train, batch_size=3, seed=0) as stream:
        batch = next(stream)
    assert batch["skipped"].sum() == 1
    assert sorted(batch["label"]) == [0, 1, 1]
    with (
        evaluation_stream(images.validation, evaluate, batch_size=3) as stream,
        pytest.raises(BadExample, match=r"example 1 cannot be evaluated: .*val/ant/gone.png is no file"),
    ):
        next(stream)
    with pytest.raises(BadExample, match=r"train/ant/2.png: 100 bytes are not a complete picture"):
        evaluate(images.train[1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_pictures_of_any_mode_become_red_green_and_blue(tmp_path, mode):
    write(tmp_path, *SPLITS)
    picture = Image.fromarray(np.full((10, 12), 700, np.uint16)) if mode == "I;16" else Image.new(mode, (12, 10))
    picture.save(tmp_path / "train/ant/1.png", format="JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    images = load_folder(tmp_path)
    image = evaluation_example(images.train[0], size=(10, 12))["image"]
    assert (image.shape, image.dtype) == ((10, 12, 3), np.uint8)
    assert "damaged" not in look(images)


def test_worker_processes_get_the_files_and_not_the_pictures(tmp_path):
    images = load_folder(write(tmp_path, *SPLITS))
    again = pickle.loads(pickle.dumps(images.train))
    assert again[1] == images.train[1]


def test_a_look_says_what_there_is_and_what_is_damaged(tmp_path):
    images = load_folder(write(tmp_path, *SPLITS, "train/ant/3.png", "train/ant/4.png", "train/ant/5.png"))
    (tmp_path / "train/ant/1.png").write_text("no picture")
    (tmp_path / "train/ant/2.png").write_bytes(b"")
    (tmp_path / "train/ant/3.png").unlink()
    (tmp_path / "train/ant/4.png").unlink()
    os.mkfifo(tmp_path / "train/ant/4.png")
    lines = look(images).splitlines()
    assert lines[:3] == [
        "classes   2: 'ant', 'bee'",
        f"train     6 pictures in {tmp_path}/train, 1 to 5 of a class",
        f"val       2 pictures in {tmp_path}/val, 1 of a class",
    ]
    assert re.fullmatch(
        r"damaged   4 of 6 pictures in .*/train cannot be read: .*/train/ant/1.png: 10 bytes .*, .*2.png: .*, "
        r".*3.png is no file.* and 1 more: the training takes others in their place",
        lines[3],
    )
    (tmp_path / "val/bee/3.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"1 of 2 pictures in .*/val cannot be read: .*bee/3.png: .*remove or replace"):
        look(images)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_look_finds_what_is_cut_short_but_not_what_goes_on_behind_its_picture(tmp_path, suffix):
    images = load_folder(write(tmp_path, *SPLITS))
    whole = cv2.imencode(suffix, np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))[1].tobytes()
    (tmp_path / "train/ant/1.png").write_bytes(whole + b"\0" * 1000)
    assert "damaged" not in look(images)
    (tmp_path / "train/ant/2.png").write_bytes(whole[:-200])
    assert "damaged   1 of 3 pictures" in look(images)


def test_of_many_pictures_some_are_looked_at(tmp_path, monkeypatch):
    images = load_folder(write(tmp_path, *SPLITS))
    monkeypatch.setattr("repmlp_jax.data.looking.LOOKED_AT", 2)
    for path in images.train.paths:
        (tmp_path / path).write_text("no picture")
    assert "damaged   2 of 2 of the 3 pictures in" in look(images)
