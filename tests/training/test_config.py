import json

import jax
import pytest
from tiny_recipe import get_config

from repmlp_jax.training import default_config, train_and_evaluate
from repmlp_jax.training.config import check_config
from repmlp_jax.training.loop import for_the_devices
from repmlp_jax.training.sharding import check_batch_size, make_mesh


def test_the_defaults_are_valid():
    check_config(default_config())
    check_config(get_config())


def test_all_mistakes_in_one_message():
    config = get_config(epochs=-1, checkpoint_every_steps=-5, crop_padding=-1)
    config.batchsize = 4
    config.model_arguments.width = (4,)
    del config.momentum
    with pytest.raises(ValueError, match="config: ") as error:
        check_config(config)
    assert str(error.value) == (
        "config: there is no field 'batchsize'; the nearest is 'batch_size'; field 'momentum' is missing; "
        "epochs=-1 must not be below 0; crop_padding=-1 must not be below 0; "
        "checkpoint_every_steps=-5 must not be below 0; "
        "PureMLP has no argument 'width'; the nearest is 'widths'"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(batch_size=0), "batch_size=0 must be above 0"),
        (dict(learning_rate=0.0), "learning_rate=0.0 must be above 0"),
        (dict(learning_rate=float("nan")), "learning_rate=nan must be above 0"),
        (dict(steps_per_call=-1), "steps_per_call=-1 must not be below 0"),
        (dict(warmup_epochs=2.0), "warmup_epochs=2.0 must be less than epochs=2"),
        (dict(model="pure_mpl"), "no model is called 'pure_mpl'; the nearest is 'pure_mlp'"),
        (dict(dataset="digit"), "no dataset is called 'digit'; the nearest is 'digits'"),
        (dict(optimizer="adam"), "optimizer='adam' is none of 'sgd', 'adamw'; the nearest is 'adamw'"),
        (dict(batch_size=64, accumulate=3), "accumulate=3 does not divide batch_size=64"),
        (
            dict(mesh=dict(data=3, fsdp=2)),
            r"mesh \(data=3, fsdp=2\) does not fit 8 devices; use one of \(8, 1\), \(4, 2\)",
        ),
        (dict(batch_size=1440), "batch_size=1440 is more than the 1437 training images"),
        (dict(batch_size=60), "batch_size=60 cannot be split over 8 devices evenly; 56 or 64 can"),
    ],
)
def test_an_impossible_value_is_named(tmp_path, changes, message):
    workdir = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(get_config(**changes), workdir)
    assert not workdir.exists()


def test_any_batch_fits_one_device():
    check_batch_size("batch_size", 7, make_mesh(devices=jax.devices()[:1]))
    check_batch_size("batch_size", 24, make_mesh())


def test_a_workdir_belongs_to_one_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads(get_config().to_json())))
    with pytest.raises(ValueError, match="holds a run of another configuration") as error:
        train_and_evaluate(get_config(seed=1, model="wide_convnet", model_arguments={}), tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path} holds a run of another configuration: model is 'wide_convnet' now and 'pure_mlp' there; "
        f"model_arguments is {{}} now and "
    )
    assert "; seed is 1 now and 0 there. Choose another workdir" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(("given", "used"), [(500, 504), (200, 200), (7, 8)])
def test_any_evaluation_batch_fits_by_padding(given, used):
    config = get_config(eval_batch_size=given)
    assert for_the_devices(config, make_mesh()).eval_batch_size == used
    assert config.eval_batch_size == given
