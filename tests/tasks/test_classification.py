"""Classification: grey pictures are trained on, and what does not fit the dataset is refused before that."""

import grey_pictures
import jax
import jax.numpy as jnp
import pytest
from cases import abstract, randomised

from repmlp_jax import create_model, save_model
from repmlp_jax.deploy.predict import evaluate
from repmlp_jax.tasks.classification import Classification
from repmlp_jax.training import default_config, train_and_evaluate
from repmlp_jax.training.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("as_users_have_it")


def make_config(data_dir="", **changes):
    sizes = dict(num_classes=2, image_size=(8, 8), in_features=1, widths=(4,), partition_size=(4, 4), conv_kernels=(1,))
    config = default_config()
    config.update(dict(dataset="bars", data_dir=str(data_dir), epochs=1, batch_size=16, eval_batch_size=8))
    config.model_arguments.update({**sizes, **changes.pop("model_arguments", {})})
    config.update(changes)
    return config


def make_task(config):
    return Classification(config, make_mesh(), jax.random.key(0))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return grey_pictures.prepare(tmp_path_factory.mktemp("tensorflow_datasets")).parents[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pictures_of_tfds_are_read_in_the_channels_of_the_model(data_dir, channels):
    task = make_task(make_config(data_dir, model_arguments=dict(in_features=channels)))
    assert len(task.preprocessing["mean"]) == len(task.preprocessing["std"]) == channels
    assert not task.preprocessing["class_names"]
    batch = task.evaluator._batches.first()
    assert (batch["image"].shape, batch["image"].dtype) == ((8, 8, 8, channels), jnp.uint8)


@pytest.mark.slow
def test_a_model_of_one_channel_is_trained_on_grey_pictures_of_tfds(data_dir, tmp_path):
    results = train_and_evaluate(make_config(data_dir, steps_per_call=3), tmp_path / "run")
    for name in ("trained", "fused"):
        assert results[name].keys() >= {"accuracy", "loss"}
    found = evaluate(tmp_path / "run" / "fused", "bars", data_dir)
    assert found["accuracy"] == pytest.approx(results["fused"]["accuracy"])


def test_distortions_of_colour_are_refused_for_grey_pictures(data_dir):
    with pytest.raises(ValueError, match="augmentation='randaugment' distorts pictures in RGB, and 'pure_mlp' takes"):
        make_task(make_config(data_dir, augmentation="randaugment"))


def test_pictures_are_mirrored_only_if_the_recipe_says_so(data_dir):
    batches = []
    for flip in (True, False, False):
        with make_task(make_config(data_dir, flip=flip)).feed._open_stream(0) as stream:
            batches.append(next(stream)["image"])
    assert (batches[1] == batches[2]).all()
    mirrored = (batches[0] == batches[1][:, :, ::-1]).all((1, 2, 3))
    assert (mirrored ^ (batches[0] == batches[1]).all((1, 2, 3))).all()
    assert mirrored.any()


def test_without_training_the_classes_of_the_first_weights_have_to_be_those_of_the_dataset(tmp_path):
    sizes = dict(num_classes=10, image_size=(8, 8))
    config = make_config(dataset="digits", epochs=0, init_from=str(tmp_path / "model"), model_arguments=sizes)
    model = randomised(abstract(create_model, "pure_mlp", **config.model_arguments))
    for names, message in (
        ("9876543210", "model has the classes of digits in another order, and epochs=0 would not train it"),
        ("abcdefghij", "names differ: only .* has 'a', 'b', 'c', 'd', 'e' and 5 more; only digits has '0'"),
    ):
        save_model(tmp_path / "model", model, preprocessing=dict(class_names=list(names)), overwrite=True)
        with pytest.raises(ValueError, match=message):
            make_task(config)
    config.init_head = "skip"
    make_task(config)


def test_images_in_memory_of_another_size_are_refused():
    with pytest.raises(ValueError, match="pure_mlp takes images of 4×4×1, those of digits are 8×8×1"):
        make_task(make_config(dataset="digits", model_arguments=dict(image_size=(4, 4), num_classes=10)))
