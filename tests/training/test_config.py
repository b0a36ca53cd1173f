import json

import jax
import jax.numpy as jnp
import numpy as np
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
        (dict(learning_rate=float("nan")), "learning_rate=nan must be a finite number"),
        (dict(weight_decay=float("inf")), "weight_decay=inf must be a finite number"),
        (dict(label_smoothing=5.0), "label_smoothing=5.0 must be from 0 to below 1"),
        (dict(label_smoothing=-1.0), "label_smoothing=-1.0 must be from 0 to below 1"),
        (dict(momentum=5.0), "momentum=5.0 must be from 0 to below 1"),
        (dict(ema_decay=1.0), "ema_decay=1.0 must be from 0 to below 1"),
        (dict(ema_decay=-0.1), "ema_decay=-0.1 must be from 0 to below 1"),
        (dict(seed=2**40), r"seed=1099511627776 must be from 0 to 2³² - 1"),
        (dict(drop_at=(2.0,)), r"drop_at=\(2.0,\) must be fractions between 0 and 1 in increasing order"),
        (dict(drop_at=(0.9, 0.1)), r"drop_at=\(0.9, 0.1\) must be fractions between 0 and 1 in increasing order"),
        (dict(drop_at=("a",)), r"drop_at=\('a',\) must be a tuple of numbers"),
        (dict(crop_scale=(2.0, 0.5)), r"crop_scale=\(2.0, 0.5\) must be \(smallest, largest\) factor, both above 0"),
        (dict(epochs=True), "epochs=True must be an integer"),
        (dict(mesh=dict(data=0, fsdp=1, model=2)), "mesh has no field 'model': it has data and fsdp"),
        (dict(mesh=dict(data="all")), "mesh.data='all' must be an integer"),
        (dict(steps_per_call=-1), "steps_per_call=-1 must not be below 0"),
        (dict(warmup_epochs=2.0), "warmup_epochs=2.0 must be less than epochs=2"),
        (dict(model="pure_mpl"), "no model is called 'pure_mpl'; the nearest is 'pure_mlp'"),
        (dict(dataset="digit"), "no dataset is called 'digit'; the nearest is 'digits'"),
        (
            dict(optimizer="adam"),
            "optimizer='adam' must be one of 'sgd', 'adamw', 'lamb', 'lion', 'muon'; the nearest is 'adamw'",
        ),
        (dict(patience=-1), "patience=-1 must not be below 0"),
        (dict(final_weights="top"), "final_weights='top' must be one of 'last', 'best'"),
        (dict(final_weights="best", epochs=0), "final_weights='best' needs epochs above 0"),
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_classes="ten"), "num_classes must be a positive integer, not 'ten'"),
        (dict(num_classes=10.0), "num_classes must be a positive integer, not 10.0"),
        (dict(widths=(8, "x")), r"widths must be a sequence of positive integers, not \(8, 'x'\)"),
        (dict(image_size=(8, 8, 1)), r"image_size must be two positive integers, or one for both, not \(8, 8, 1\)"),
        (dict(in_features=-8), "in_features must be a positive integer, not -8"),
        (dict(ablation=3), "ablation must be None or a string, not 3"),
        (dict(dtype="bfloat61"), "dtype must be None or a floating-point dtype, not 'bfloat61'"),
        (dict(param_dtype="int8"), "param_dtype must be a floating-point dtype, not 'int8'"),
        (dict(model="RepMLPNet-T224", pad="no"), "pad must be True or False, not 'no'"),
        (dict(model="RepMLPNet-T224", stochastic_depth="a"), "stochastic_depth must be a number, not 'a'"),
    ],
)
def test_an_argument_of_the_model_has_the_type_of_the_constructor(arguments, message):
    model = arguments.get("model", "pure_mlp")
    config = get_config(model=model, model_arguments={name: arguments[name] for name in arguments if name != "model"})
    with pytest.raises(ValueError, match=rf"config: model_arguments\.{message}$"):
        check_config(config)


def test_arguments_of_the_model_that_are_right():
    check_config(
        get_config(model="RepMLPNet-T224", model_arguments=dict(pad=True, stochastic_depth=0, image_size=None))
    )


def test_numbers_of_numpy_and_jax_become_plain_ones():
    config = get_config()
    config.model_arguments = dict(
        num_classes=np.int64(10),
        image_size=np.array([8, 8]),
        widths=(jnp.int32(8), np.uint8(16)),
        dtype=jnp.bfloat16,
        param_dtype=np.dtype("float32"),
    )
    config.learning_rate = np.float64(0.1)
    plain = json.loads(check_config(config).to_json())
    assert plain["model_arguments"] == dict(
        num_classes=10, image_size=[8, 8], widths=[8, 16], dtype="bfloat16", param_dtype="float32"
    )
    assert plain["learning_rate"] == 0.1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("x", "config must be a ConfigDict, as default_config.. returns, and not 'x'"),
        (dict(epochs=1), "and not {'epochs': 1}"),
        (get_config, "and not <function get_config at .*>: call it"),
    ],
)
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_configuration_is_refused(tmp_path, config, message):
    with pytest.raises(TypeError, match=message):
        train_and_evaluate(config, tmp_path / "run")
    with pytest.raises(TypeError, match="workdir must be a path, not None"):
        train_and_evaluate(get_config(), None)


def test_any_batch_fits_one_device():
    check_batch_size("batch_size", 7, make_mesh(devices=jax.devices()[:1]))
    check_batch_size("batch_size", 24, make_mesh())


def test_a_workdir_belongs_to_one_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(json.loads(get_config().to_json())))
    sizes = dict(image_size=(8, 8), in_features=1, widths=(4,))
    with pytest.raises(ValueError, match="holds a run of another configuration") as error:
        train_and_evaluate(get_config(seed=1, model="wide_convnet", model_arguments=sizes), tmp_path)
    assert str(error.value).startswith(
        f"{tmp_path} holds a run of another configuration: model is 'wide_convnet' now and 'pure_mlp' there; "
        f"model_arguments is {{'image_size': [8, 8], 'in_features': 1, "
    )
    assert "; seed is 1 now and 0 there. Choose another workdir" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(("given", "used"), [(500, 504), (200, 200), (7, 8)])
def test_any_evaluation_batch_fits_by_padding(given, used):
    config = get_config(eval_batch_size=given)
    assert for_the_devices(config, make_mesh()).eval_batch_size == used
    assert config.eval_batch_size == given


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(augmentation="randaugment"), "augmentation='randaugment' is for streamed pictures with one label each"),
        (dict(task="faces", calibration=True), "calibration=True is for task='classification'$"),
        (dict(task="faces", mixup=0.2), "mixup=0.2 is for task='classification'$"),
        (dict(task="faces", label_smoothing=0.1), "label_smoothing=0.1 is for task='classification' or 'segmentation'"),
        (dict(task="segmentation", cutmix=1.0), "cutmix=1.0 is for task='classification'"),
        (dict(crop_scale=(1.0, 2.0), margin=0.5), "margin=0.5 is for .*; crop_scale=.* is for task='segmentation'"),
        (dict(task="segmentation", dataset="camvid", flip=False), "flip=False is for .*: street scenes are mirrored"),
        (dict(crop_padding=8), r"crop_padding=8 must be less than each side of the images, \(8, 8\)"),
        (dict(num_people=3), "num_people=3 is for task='faces'"),
        (dict(test_dataset="lfw"), "test_dataset='lfw' is for task='faces'"),
        (dict(val_share=0.2), "val_share=0.2 is for dataset='folder'"),
        (dict(task="faces", dataset="folder"), "dataset='folder' is for task='classification'"),
        (dict(dataset="folder"), "dataset='folder' needs data_dir: the folder that holds train/CLASS"),
    ],
)
def test_what_a_task_does_not_do_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train_and_evaluate(get_config(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
