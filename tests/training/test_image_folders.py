"""Training, evaluation and predictions on pictures in folders of their classes."""

import json
import shutil

import cv2
import jax
import pytest
from cases import abstract, randomised
from tiny_recipe import get_config
from tiny_runs import finish, start, undisturbed_and_killed
from tolerance import assert_identical
from typer.testing import CliRunner

from repmlp_jax import PureMLP, load_model, save_model
from repmlp_jax.cli import app
from repmlp_jax.data import load_dataset
from repmlp_jax.deploy.predict import evaluate
from repmlp_jax.storage.models import load
from repmlp_jax.tasks.classification import Classification
from repmlp_jax.training import train_and_evaluate
from repmlp_jax.training.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("as_users_have_it")
SIZES = dict(image_size=(8, 8), in_features=3, widths=(4,), partition_size=(4, 4), conv_kernels=(1,))


def write_digits(folder, classes=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), most=1437):
    """The digits as files DIR/train/three/17.png."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    digits = load_dataset("digits")
    for split, (images, labels) in (("train", digits.train), ("test", digits.test)):
        for number, (image, label) in enumerate(zip(images[:most], labels[:most], strict=True)):
            if label in classes:
                (of_class := folder / split / names[label]).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(of_class / f"{number}.png"), image)
    return folder


def make_config(folder, **changes):
    return get_config(dataset="folder", data_dir=str(folder), **dict(model_arguments=SIZES) | changes)


def test_the_number_and_the_names_of_classes_are_those_of_the_folders(tmp_path, capsys):
    folder = write_digits(tmp_path, classes=(3, 8), most=40)
    task = Classification(config := make_config(folder), make_mesh(), jax.random.key(0))
    assert task.preprocessing["class_names"] == ("eight", "three")
    assert "val_share" not in task.preprocessing
    assert abstract(task.make_model).head.bias.shape == (2,)
    assert "num_classes" not in config.model_arguments
    assert capsys.readouterr().out.startswith("classes   2: 'eight', 'three'\ntrain     ")
    config.model_arguments.num_classes = 10
    with pytest.raises(
        ValueError, match=r"'pure_mlp' has 10 classes, folder has 2 classes: set model_arguments.num_cl"
    ):
        Classification(config, make_mesh(), jax.random.key(0))


@pytest.mark.slow
def test_what_training_held_out_is_what_is_evaluated(tmp_path):
    folder = write_digits(tmp_path / "digits", classes=(3, 8)) / "train"
    config = make_config(folder, val_share=0.3, batch_size=32, epochs=1, eval_batch_size=16)
    results = train_and_evaluate(config, tmp_path / "run")
    model = tmp_path / "run" / "model"
    assert load(model).preprocessing["val_share"] == 0.3
    found = evaluate(model, "folder", folder)
    counts = [len(list((folder / name).iterdir())) for name in ("three", "eight")]
    assert found["images"] == sum(round(0.3 * count) for count in counts)
    assert found["accuracy"] == pytest.approx(results["trained"]["accuracy"])
    assert evaluate(model, "folder", folder.parent)["images"] == len(list(folder.parent.glob("test/*/*")))


@pytest.mark.slow
def test_a_folder_is_evaluated_and_predicted(tmp_path):
    folder = write_digits(tmp_path / "digits", classes=(3, 8), most=60)
    model = randomised(abstract(PureMLP, num_classes=2, **SIZES))
    save_model(tmp_path / "model", model, preprocessing=dict(class_names=["three", "eight"]))

    def run(*arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    all_of_them = len(list(folder.glob("test/*/*")))
    for data_dir in (folder, folder / "test"):
        scores = json.loads(
            run("evaluate", tmp_path / "model", "--dataset", "folder", "--data-dir", data_dir, "--json").stdout
        )
        assert scores["images"] == all_of_them
    paths = sorted(map(str, folder.glob("test/*/*")))
    single = paths[0]
    found = json.loads(run("predict", tmp_path / "model", folder / "test", "--json").stdout)
    assert list(found) == paths
    assert found[single] == json.loads(run("predict", tmp_path / "model", single, "--json").stdout)[single]
    right = sum(classes[0][0] == path.split("/")[-2] for path, classes in found.items())
    assert right == round(scores["accuracy"] * all_of_them)
    both = json.loads(run("predict", tmp_path / "model", folder / "test", single, "--json").stdout)
    assert [path for path, _ in both] == [*paths, single]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("")
    result = run("predict", tmp_path / "model", tmp_path / "empty")
    assert (result.exit_code, result.stderr) == (2, f"error: {tmp_path}/empty holds no picture, and 1 other files\n")
    result = run("evaluate", tmp_path / "model", "--dataset", "folder", "--data-dir", tmp_path / "nowhere")
    assert result.stderr == f"error: there is no folder {tmp_path}/nowhere, which data_dir names\n"


@pytest.mark.slow
def test_killed_processes_that_read_folders_end_as_one_undisturbed_pair(tmp_path):
    folder = write_digits(tmp_path / "digits")
    cut = sorted((folder / "train" / "two").iterdir())[::20]
    for file in cut:
        file.write_bytes(file.read_bytes()[:30])
    arguments = [
        f"--config.data_dir={folder}",
        "--config.dataset=folder",
        "--config.model_arguments.in_features=3",
        "--config.workers=1",
    ]
    *folders, said = undisturbed_and_killed(tmp_path, *arguments)
    assert f"damaged   {len(cut)} of 1,437 pictures in " in said
    for name in ("model", "fused"):
        assert_identical(*(load_model(each / name) for each in folders))

    # With one picture under another name.
    shutil.copytree(folder, tmp_path / "other")
    first = min((tmp_path / "other" / "train" / "two").iterdir())
    first.rename(first.with_name("other.png"))
    each = [], [f"--config.data_dir={tmp_path}/other"]
    codes, outputs = finish(start(tmp_path / "third", *arguments, processes=2, each=each))
    assert codes == [2, 2], outputs
    assert all("processes [1] of 2 have another list of files in data_dir than process 0" in each for each in outputs)
