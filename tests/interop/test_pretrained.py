"""Building models by name with weights, and as maps of their stages."""

import logging

import jax.numpy as jnp
import pytest
from cases import abstract, evaluate, quick_jit, random_input, randomised
from flax import nnx
from tolerance import ROUNDING_F32, assert_close, assert_identical

from repmlp_jax import (
    RepMLPNet,
    RepMLPResNet,
    create_model,
    export_torch,
    fuse_params,
    fuse_report,
    list_models,
    load_model,
    save_model,
)
from repmlp_jax.models.registry import MODELS

NETS = {
    "tiny-net": (
        RepMLPNet,
        dict(stage_sizes=(1, 1), widths=(4, 8), num_classes=5, partition_sizes=((4, 4), (2, 2)), sharesets=(1, 2)),
    ),
    "tiny-resnet": (
        RepMLPResNet,
        dict(
            stage_sizes=(1, 2, 2, 1),
            widths=(16, 16, 16, 32),
            num_classes=5,
            block="bottleneck",
            image_size=(32, 32),
            partition_size=(2, 2),
            conv_kernels=(3,),
            groups=(2, 1),
            r=(2, 2),
        ),
    ),
}
CHANNELS = {"tiny-net": (4, 8), "tiny-resnet": (16, 16, 16, 32)}
REDUCTIONS = {"tiny-net": (4, 8), "tiny-resnet": (4, 8, 16, 32)}


@quick_jit
def _maps(model, x):
    return model.maps(x)


def maps_of(model, x):
    """The maps of a model's stages in evaluation mode."""
    model = nnx.clone(model)
    model.eval()
    return _maps(model, x)


@pytest.fixture(params=["tiny-net", pytest.param("tiny-resnet", marks=pytest.mark.slow)])
def name(request, monkeypatch):
    monkeypatch.setitem(MODELS, request.param, NETS[request.param])
    return request.param


@pytest.fixture
def trained(name):
    model_class, arguments = NETS[name]
    return randomised(abstract(model_class, **arguments))


@pytest.fixture(params=["saved", "official"])
def weights(request, trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    {"saved": save_model, "official": lambda path, model: export_torch(model, path)}[request.param](path, trained)
    return path


def test_names_are_listed_by_a_pattern():
    assert list_models("RepMLPNet-?224") == ["RepMLPNet-T224", "RepMLPNet-B224"]
    assert list_models("repmlpnet-?224") == ["RepMLPNet-T224", "RepMLPNet-B224"]
    assert list_models("nothing*") == []
    assert set(list_models("*Res50*")) < set(list_models()) == set(MODELS)


def test_a_model_is_built_with_its_weights(name, trained, weights, caplog):
    model = create_model(name, pretrained=weights, rngs=nnx.Rngs(1))
    assert_identical(nnx.state(model), nnx.state(trained))
    assert not caplog.records


@pytest.mark.usefixtures("unchecked_types")
def test_there_are_no_weights_to_download():
    with pytest.raises(TypeError, match="pretrained=True must be a path, hf://OWNER/NAME or None: the library has no"):
        create_model("RepMLPNet-T224", pretrained=True, rngs=nnx.Rngs(0))


def test_a_classifier_of_other_classes_is_left_out_and_the_log_says_so(name, trained, weights, caplog):
    with caplog.at_level(logging.WARNING, "repmlp_jax"):
        model = create_model(name, pretrained=weights, num_classes=3, rngs=nnx.Rngs(1))
    (record,) = caplog.records
    assert "the classifier keeps its initial weights" in record.getMessage()
    assert "has shape (5,), the model (3,)" in record.getMessage()
    image = random_input(trained, dtype=jnp.float32)
    assert evaluate(model, image).shape == (len(image), 3)
    assert_identical(maps_of(model, image)[-1], maps_of(trained, image)[-1])


def test_without_classes_it_returns_features(name, trained, weights, caplog):
    model = create_model(name, pretrained=weights, num_classes=0, rngs=nnx.Rngs(1))
    image = random_input(trained, dtype=jnp.float32)
    assert evaluate(model, image).shape == (len(image), CHANNELS[name][-1])
    assert not caplog.records


def test_weights_of_another_model_are_refused(name, trained, tmp_path, monkeypatch):
    save_model(tmp_path / "saved", trained)
    monkeypatch.setitem(MODELS, "other", (RepMLPNet, {**NETS["tiny-net"][1], "widths": (4, 12)}))
    with pytest.raises(ValueError, match="saved does not fit RepMLPNet"):
        create_model("other", pretrained=tmp_path / "saved", rngs=nnx.Rngs(0))


def test_maps_of_all_stages(name, trained, weights, tmp_path):
    model = create_model(name, pretrained=weights, features_only=True, rngs=nnx.Rngs(1))
    image = random_input(trained, dtype=jnp.float32)
    maps = evaluate(model, image)
    for found, expected in zip(maps, maps_of(trained, image), strict=True):
        assert_identical(found, expected)
    assert tuple(info.channels for info in model.feature_info) == CHANNELS[name]
    assert tuple(info.reduction for info in model.feature_info) == REDUCTIONS[name]
    height, width, _ = model.input_shape
    for found, info in zip(maps, model.feature_info, strict=True):
        assert found.shape[1:] == (height // info.reduction, width // info.reduction, info.channels)
        assert info.module == f"stages.{model.feature_info.index(info)}"
    fused = fuse_params(model)
    for found, expected in zip(evaluate(fused, image), maps, strict=True):
        assert_close(found, expected, ROUNDING_F32)
    save_model(tmp_path / "fused", fused)
    loaded = load_model(tmp_path / "fused")
    assert_identical(nnx.state(loaded), nnx.state(fused))
    assert loaded.feature_info == model.feature_info
    assert fuse_report(model).macs[1] < fuse_report(trained).macs[1]


def test_maps_are_refused_of_models_without_and_with_classes(name):
    with pytest.raises(ValueError, match="is for RepMLPNet and RepMLPResNet, and 'pure_mlp' is a PureMLP"):
        create_model("pure_mlp", features_only=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="features_only has no classifier for num_classes=3"):
        create_model(name, features_only=True, num_classes=3, rngs=nnx.Rngs(0))


def test_maps_have_no_class_names(name, tmp_path):
    model = create_model(name, features_only=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="Features returns a list for an image and not one array"):
        save_model(tmp_path / "saved", model, preprocessing=dict(class_names=["cat"]))
