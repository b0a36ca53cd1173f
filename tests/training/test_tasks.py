"""Whole runs of every task on real data, narrow and short."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from tiny_recipe import get_config as digits_config
from tiny_runs import finish, start

from repmlp_jax import RepMLPResNet, load_model, save_model
from repmlp_jax.data import imagenet
from repmlp_jax.storage.checkpoints import Checkpoints
from repmlp_jax.storage.digest import digests
from repmlp_jax.tasks import task_class
from repmlp_jax.tasks.segmentation import data as street_scenes
from repmlp_jax.tasks.segmentation import task as segmentation
from repmlp_jax.training import default_config, loop, train_and_evaluate
from repmlp_jax.training.sharding import make_mesh

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users_have_it")]

FACES = dict(
    task="faces",
    dataset="orl_faces",
    model="RepMLP-FaceRes",
    model_arguments=dict(
        image_size=(24, 24),
        in_features=1,
        stage_sizes=(2, 1),
        widths=(8, 8),
        mid_widths=(8, 8),
        stem_features=4,
        partition_size=(3, 3),
        embedding_features=16,
    ),
    batch_size=40,
    eval_batch_size=104,
    crop_padding=2,
)
SCENES = dict(
    task="segmentation",
    dataset="camvid",
    model="PSPNet-RepMLP-Res50",
    model_arguments=dict(
        num_classes=11,
        image_size=(65, 97),
        partition_size=(4, 4),
        conv_kernels=(1, 3),
        widths=(8, 8, 8, 16),
        stage_sizes=(1, 2, 1, 1),
        stem_features=4,
        groups=(1, 1),
        r=(1, 1),
        reduction=(1, 1),
        bins=(1, 2),
        output_stride=16,
        pad=True,
    ),
    batch_size=16,
    eval_batch_size=24,
    schedule="poly",
    learning_rate=0.05,
)
STREAMED = dict(
    dataset="cifar10:3.0.2",  # with its version it is not a resident dataset: it is streamed, as ImageNet is
    model_arguments=dict(image_size=(8, 8), widths=(4,), partition_size=(4, 4), conv_kernels=(3,)),
    batch_size=200,
    eval_batch_size=96,
    augmentation="randaugment",
    mixup=0.4,
    cutmix=1.0,
    label_smoothing=0.1,
    optimizer="adamw",
    learning_rate=1e-2,
)


@pytest.fixture(autouse=True)
def small_splits(monkeypatch):
    """What is streamed has some hundreds of examples: enough for every path, and quick."""

    class Some:
        def __init__(self, source, number):
            self.source, self.number = source, number

        def __len__(self):
            return self.number

        def __getitem__(self, index):
            return self.source[index]

    load_scenes, load_images = street_scenes.load_street_scenes, imagenet.load_imagenet

    def load_some_scenes(*arguments):
        return {name: Some(split, 80 if name == "train" else 3) for name, split in load_scenes(*arguments).items()}

    monkeypatch.setattr(segmentation, "load_street_scenes", load_some_scenes)

    def load_some_images(*arguments):
        images = load_images(*arguments)
        return dataclasses.replace(images, train=Some(images.train, 600), validation=Some(images.validation, 250))

    monkeypatch.setattr(imagenet, "load_imagenet", load_some_images)


def make_config(fields, data_dir, **changes):
    config = default_config()
    config.data_dir = str(data_dir)
    config.epochs = 1
    config.steps_per_call = 5
    for name, value in {**fields, **changes}.items():
        config[name] = value
    return config


@pytest.mark.parametrize(
    ("fields", "score", "picture", "baselines"),
    [
        (FACES, "rank_1", "roc.png", {"pixels", "pixels less their mean"}),
        (SCENES, "mean_iou", "scene_0.png", {"majority class"}),
        (STREAMED, "accuracy", "curves.png", set()),
    ],
    ids=["faces", "scenes", "streamed"],
)
def test_a_run_trains_fuses_and_draws(shared_datasets, tmp_path, fields, score, picture, baselines):
    results = train_and_evaluate(make_config(fields, shared_datasets), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert results["largest_output_difference"] < 1e-4 * results["largest_output"]
    assert results["fused"][score] == pytest.approx(results["trained"][score], abs=2e-3)
    assert results["fused"]["parameters"] < results["trained"]["parameters"]
    (row,) = csv.DictReader((tmp_path / "metrics.csv").open())
    assert float(row[f"test_{score}"]) == results["trained"][score]
    assert np.isfinite(float(row["train_loss"]))
    assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert set(results["baselines"]) == baselines
    for name in ("model", "fused"):
        load_model(tmp_path / name)


def test_two_processes_draw_what_one_does(shared_datasets, tmp_path):
    flags = [f"--config.{name}={value}" for name, value in (FACES | dict(epochs=0, data_dir=shared_datasets)).items()]
    codes, outputs = finish(start(tmp_path / "two", *flags, processes=2))
    assert codes == [0, 0], outputs
    train_and_evaluate(make_config(FACES, shared_datasets, epochs=0), tmp_path / "one")
    one, two = (np.asarray(Image.open(tmp_path / run / "roc.png"), float) for run in ("one", "two"))
    assert abs(one - two).mean() < 1  # of 255: rounding moves a curve by less than a pixel


def test_an_interrupted_stream_goes_on_bit_for_bit(shared_datasets, tmp_path, monkeypatch):
    """The streams' examples, what is drawn for them, and dropout's keys come back with the step."""
    config = make_config(SCENES, shared_datasets, epochs=2, checkpoint_every_steps=4, eval_every_epochs=2)
    trained = []
    # What comes after training is of no interest here, and takes as long.
    monkeypatch.setattr(loop, "fuse_and_save", lambda workdir, model, *_, **__: trained.append(nnx.state(model)) or {})
    monkeypatch.setattr(
        segmentation.SceneEvaluator, "evaluate", lambda *_: dict.fromkeys(segmentation.Segmentation.scores, 0.5)
    )
    train_and_evaluate(config, tmp_path / "whole")
    save = Checkpoints.save

    def save_and_die(self, step, state, metrics=None):
        save(self, step, state, metrics)
        if step >= 8:  # within the second epoch
            self.wait()
            raise KeyboardInterrupt

    again = tmp_path / "again"
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, again)
    train_and_evaluate(config, again)
    whole, resumed = trained
    assert digests(whole) == digests(resumed)
    assert (again / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()


def test_training_starts_from_given_weights_and_zero_epochs_only_evaluate(tmp_path):
    trained = train_and_evaluate(digits_config(epochs=1), tmp_path / "first")
    evaluated = train_and_evaluate(
        digits_config(epochs=0, init_from=str(tmp_path / "first" / "model")), tmp_path / "evaluated"
    )
    for name in ("trained", "fused"):
        assert evaluated[name]["accuracy"] == trained[name]["accuracy"]
    config = digits_config(epochs=0, init_from=str(tmp_path / "first" / "model"))
    config.model_arguments.widths = (6,)
    with pytest.raises(ValueError, match="does not fit PureMLP"):
        train_and_evaluate(config, tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="there is no file nowhere"):
        train_and_evaluate(digits_config(epochs=0, init_from="nowhere"), tmp_path / "nowhere")


def test_a_net_for_scenes_starts_from_a_classifiers_stages(shared_datasets, tmp_path):
    arguments = SCENES["model_arguments"]
    shared = ("stage_sizes", "widths", "partition_size", "conv_kernels", "groups", "r", "reduction")
    classifier = RepMLPResNet(
        block="bottleneck",
        num_classes=3,
        image_size=(64, 96),
        pad=True,
        **{name: arguments[name] for name in shared},
        rngs=nnx.Rngs(5),
    )
    save_model(tmp_path / "classifier", classifier)
    config = make_config(SCENES, shared_datasets, epochs=0, init_from=str(tmp_path / "classifier"))
    config.model_arguments.stem_features = 64  # ResNet's
    train_and_evaluate(config, tmp_path / "run")
    started = load_model(tmp_path / "run" / "model")
    assert (started.stem.conv.kernel[...] == classifier.stem.conv.kernel[...]).all()


@pytest.mark.parametrize(
    ("fields", "changes", "message"),
    [
        (
            FACES,
            dict(model="pure_mlp", model_arguments={}),
            "needs a model that gives embeddings, and 'pure_mlp' gives",
        ),
        (FACES, dict(model_arguments=FACES["model_arguments"] | dict(in_features=3)), "takes images of 3 channels"),
        (SCENES, dict(model="pure_mlp", model_arguments={}), "needs a PSPNet, and 'pure_mlp' is a PureMLP"),
        (SCENES, dict(eval_split="validation"), "camvid has no split 'validation'; it has test, train, val"),
        (
            SCENES,
            dict(model_arguments=SCENES["model_arguments"] | dict(num_classes=19)),
            "has 19 classes, camvid 11: set model_arguments.num_classes=11",
        ),
        (
            STREAMED,
            dict(model_arguments=STREAMED["model_arguments"] | dict(num_classes=7)),
            r"'pure_mlp' has 7 classes, cifar10:3.0.2 has 10 classes: set model_arguments.num_classes=10",
        ),
        (
            STREAMED,
            dict(model_arguments=STREAMED["model_arguments"] | dict(num_classes=0)),
            r"'pure_mlp' has no classifier: it gives \d+ features, and cifar10:3.0.2 has 10 classes",
        ),
    ],
)
def test_what_does_not_fit_together_is_named(shared_datasets, tmp_path, fields, changes, message):
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(make_config(fields, shared_datasets, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_baselines_of_faces_are_the_pixels(shared_datasets):
    task = task_class("faces")(make_config(FACES, shared_datasets), make_mesh(), jax.random.key(0))
    for scores in task.baselines().values():
        assert 0.5 < scores["auc"] < 1
        assert 0.5 < scores["rank_1"] <= 1


def test_people_that_are_streamed_are_not_those_verified(shared_datasets):
    task = task_class("faces")(make_config(FACES, shared_datasets, num_people=30), make_mesh(), jax.random.key(0))
    assert task.feed.examples == 300
    assert task.preprocessing == dict(mean=(0.5,), std=(0.5,))
    with pytest.raises(
        ValueError, match=r"1 labels of orl_faces's test split are below num_people=31.*set test_dataset"
    ):
        task_class("faces")(make_config(FACES, shared_datasets, num_people=31), make_mesh(), jax.random.key(0))


def test_the_baseline_of_scenes_is_the_majority_class(shared_datasets):
    task = task_class("segmentation")(make_config(SCENES, shared_datasets), make_mesh(), jax.random.key(0))
    scores = task.baselines()["majority class"]
    labels = np.concatenate([label.ravel() for _, label in task.evaluator._pictures()])
    counts = np.bincount(labels[labels != 255], minlength=11)
    share = counts.max() / counts.sum()
    assert scores["pixel_accuracy"] == pytest.approx(share)
    assert scores["mean_iou"] == pytest.approx(share / (counts > 0).sum())
