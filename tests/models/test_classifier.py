"""Classifiers without classes: they return the features that the classifier would see."""

import functools

import jax.numpy as jnp
import pytest
from cases import abstract, apply, random_input, randomised
from flax import nnx
from tolerance import ROUNDING_F64, assert_close, assert_identical

from repmlp_jax import (
    PureMLP,
    RepMLPNet,
    RepMLPResNet,
    WideConvNet,
    from_torch,
    fuse_params,
    fuse_report,
    load_model,
    save_model,
    to_torch,
)
from repmlp_jax.blocks.layers import BatchNorm
from repmlp_jax.models.state import arrays_of, head_places, load_state
from repmlp_jax.quantisation.quantise import quantise_params

RESNET = dict(stage_sizes=(1, 2, 1, 1), widths=(8, 16, 16, 16), image_size=(32, 16), partition_size=1, groups=1)
MODELS = {
    "PureMLP": functools.partial(PureMLP, image_size=8, widths=(4,), partition_size=4, conv_kernels=(1,)),
    "WideConvNet": functools.partial(WideConvNet, image_size=8, widths=(2, 4)),
    "RepMLPResNet": functools.partial(RepMLPResNet, block="light", **RESNET),
    "RepMLPNet": functools.partial(
        RepMLPNet, stage_sizes=(1, 1), widths=(4, 8), partition_sizes=(4, 2), sharesets=(1, 2), patch_size=2
    ),
}
FEATURES = {"PureMLP": 4, "WideConvNet": 4, "RepMLPResNet": 16, "RepMLPNet": 8}
slow = pytest.mark.slow
every_classifier = pytest.mark.parametrize("name", MODELS)


@functools.cache
def build(name, num_classes):
    make = functools.partial(MODELS[name], num_classes=num_classes, param_dtype=jnp.float64)
    model = randomised(abstract(make))
    model.eval()
    return model


@functools.cache
def pair_of(name):
    """A classifier of 5 classes, and the one without classes that has its other weights."""
    with_classes, without = build(name, 5), build(name, 0)
    names = {".".join(map(str, place)) for place in head_places(with_classes)}
    arrays = {key: array for key, array in arrays_of(with_classes).items() if key not in names}
    return with_classes, load_state(without, arrays, "the classifier")


def classify(model, features):
    linear = getattr(model.head, "linear", model.head)
    return features @ linear.kernel[...] + linear.bias[...][None]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=slow if name in ("PureMLP", "RepMLPResNet") else ()) for name in MODELS]
)
def test_the_features_are_what_the_classifier_sees(name):
    with_classes, without = pair_of(name)
    x = random_input(without)
    features = apply(without, x)
    assert features.shape == (2, FEATURES[name])
    assert_close(classify(with_classes, features), apply(with_classes, x), ROUNDING_F64)
    assert_close(apply(fuse_params(without), x), features, ROUNDING_F64)


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow if name == "RepMLPResNet" else ()) for name in MODELS])
def test_it_is_fused_completely_and_reported(name):
    _, without = pair_of(name)
    fused = nnx.eval_shape(fuse_params, without)
    assert not any(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(fused))
    report = fuse_report(without)
    norms = sum(isinstance(node, BatchNorm) for _, node in nnx.iter_graph(without))
    assert sum(len(block.folded) + len(block.kept) for block in report.blocks) == norms
    assert report.macs[1] <= report.macs[0]
    reasons = {reason for block in report.blocks for part, reason in block.kept.items() if part == "norm"}
    assert reasons == ({"as a scale and a shift, since no classifier follows"} if name == "RepMLPNet" else set())


SAVED = [
    pytest.param(name, form, marks=() if (name, form) in {("RepMLPNet", "fused"), ("PureMLP", "trained")} else slow)
    for name in MODELS
    for form in ("trained", "fused", "quantised")
]


@pytest.mark.parametrize(("name", "form"), SAVED)
def test_it_is_saved_and_comes_back(name, form, tmp_path):
    model = MODELS[name](num_classes=0, rngs=nnx.Rngs(0))
    model.eval()
    if form != "trained":
        model = fuse_params(model)
    if form == "quantised":
        model = quantise_params(model)
    save_model(tmp_path / "model", model)
    assert_identical(load_model(tmp_path / "model"), model)


@pytest.mark.parametrize("name", ["RepMLPResNet", "RepMLPNet"])
def test_it_has_the_official_layout_without_the_classifier(name):
    with_classes, without = pair_of(name)
    official = to_torch(with_classes)
    classifier = {"linear.weight", "linear.bias"} if name == "RepMLPResNet" else {"head.weight", "head.bias"}
    assert set(to_torch(without)) == set(official) - classifier
    assert_identical(from_torch(build(name, 0), to_torch(without)), without)
    assert_identical(from_torch(build(name, 0), official, head="skip"), without)
    with pytest.raises(ValueError, match=rf"not used by the model: {min(classifier)}"):
        from_torch(build(name, 0), official)
