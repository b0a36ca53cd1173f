"""What whole models are called with: anything but what they were built for is refused, before anything is computed."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import abstract
from flax import nnx
from jax import export

from repmlp_jax import FaceResNet, PSPNet, PureMLP, RepMLPNet, RepMLPResNet, WideConvNet, create_model, fuse_params

RESNET = dict(stage_sizes=(1, 2, 1, 1), widths=(8, 16, 16, 16), image_size=(32, 16), partition_size=2, groups=1)
MODELS = {
    "PureMLP": lambda **options: PureMLP(3, image_size=8, widths=(4,), partition_size=4, conv_kernels=(1,), **options),
    "WideConvNet": lambda **options: WideConvNet(3, image_size=8, widths=(2, 4), **options),
    "RepMLPResNet": lambda **options: RepMLPResNet(block="light", **RESNET | dict(partition_size=1), **options),
    "FaceResNet": lambda **options: FaceResNet(
        (2, 1), 3, block="bottleneck", image_size=16, partition_size=2, widths=(8, 8), mid_widths=(8, 8), **options
    ),
    "PSPNet": lambda **options: PSPNet(3, block="light", **RESNET | dict(partition_size=1, bins=(1,)), **options),
    "RepMLPNet": lambda **options: RepMLPNet(
        (1, 1), (4, 8), 3, partition_sizes=(4, 2), sharesets=(1, 2), patch_size=2, **options
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_form = pytest.mark.parametrize("fused", [False, True], ids=["trained", "fused"])


@functools.cache
def build(name, fused=False):
    model = abstract(MODELS[name])
    model.eval()
    return nnx.eval_shape(fuse_params, model) if fused else model


def call(model, shape, dtype=jnp.float32):
    return jax.eval_shape(lambda model, x: model(x), model, jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.usefixtures("unchecked_types")
@every_model
@every_form
def test_images_that_are_not_floating_point_are_refused(name, fused):
    model = build(name, fused)
    for dtype in (jnp.uint8, jnp.int32, jnp.bool_, jnp.complex64):
        message = rf"takes floating-point images \(N, H, W, C\), not {jnp.dtype(dtype)}: convert and normalise"
        with pytest.raises(TypeError, match=message):
            call(model, (2, *model.input_shape), dtype)
    with pytest.raises(TypeError, match=r"takes floating-point images .* not list"):
        model([[0.0]])


@pytest.mark.usefixtures("unchecked_types")
@every_model
@every_form
def test_images_of_another_shape_are_refused_with_what_was_meant(name, fused):
    model = build(name, fused)
    height, width, channels = model.input_shape
    wrong = {
        (height, width, channels): "the first axis is the batch, which x[None] makes of one image",
        (2, channels, height, width): "these seem to be (N, C, H, W), which jnp.transpose(x, (0, 2, 3, 1)) brings",
        (2, height, width, 1): "build it with in_features=1, or repeat grey images with jnp.repeat(x, 3, axis=-1)",
        (2, height, width, 4): "build it with in_features=4",
        (2, height * width * channels): "the axes are batch, height, width, channels",
        (2, height + 1, width, channels): "resize the images, or build it for this size",
    }
    for shape, advice in wrong.items():
        called = re.escape(f"and was called with {shape}: {advice}")
        message = rf"^{name} takes images \(N, H, W, C\) of shape \(N, .*, 3\) {called}"
        with pytest.raises(ValueError, match=message):
            call(model, shape)


@pytest.mark.usefixtures("unchecked_types")
def test_a_published_model_of_that_size_is_named():
    def says(name, shape, advice):
        narrow = dict(widths=(8,) * 4, stage_sizes=(1,) * 4) | ({"sharesets": (1,) * 4} if "Net" in name else {})
        model = abstract(create_model, name, **narrow)
        with pytest.raises(ValueError, match=re.escape(advice)):
            call(model, shape)

    says("RepMLPNet-T224", (1, 256, 256, 3), "of list_models(), RepMLPNet-T256 and RepMLPNet-B256 and ")
    says("RepMLPNet-T256", (1, 224, 224, 3), "of list_models(), RepMLPNet-T224 and RepMLPNet-B224 take this size")
    big = "of list_models(), RepMLP-Res50-bottleneck-320-g8-16 takes this size"
    says("RepMLP-Res50-light-224", (1, 320, 320, 3), big)


SIZES = [
    ("PureMLP", (8, 8), True),
    ("PureMLP", (16, 16), False),
    ("WideConvNet", (16, 6), True),
    ("WideConvNet", (9, 8), False),
    ("RepMLPNet", (8, 16), True),
    ("RepMLPNet", (9, 8), False),
    ("RepMLPNet", (12, 8), False),
]


@pytest.mark.usefixtures("unchecked_types")
@every_form
@pytest.mark.parametrize(("name", "size", "taken"), SIZES)
def test_only_models_that_compute_with_every_pixel_take_other_sizes(name, size, taken, fused):
    if taken:
        assert call(build(name, fused), (2, *size, 3)).shape == (2, 3)
    else:
        with pytest.raises(ValueError, match=f"{name} takes images"):
            call(build(name, fused), (2, *size, 3))


@pytest.mark.parametrize("make", [RepMLPResNet, PSPNet, FaceResNet])
def test_nets_without_repmlp_take_every_size(make):
    sizes = dict(stage_sizes=(1, 1), widths=(8, 8)) | (dict(mid_widths=(8, 8)) if make is FaceResNet else {})
    sizes |= dict(bins=(1,)) if make is PSPNet else {}
    model = abstract(make, block="base", **sizes, image_size=32)
    model.eval()
    assert call(model, (1, 50, 65, 3)).shape[0] == 1
    with pytest.raises(ValueError, match=rf"{make.__name__} takes images \(N, H, W, C\) of shape \(N, H, W, 3\)"):
        call(model, (1, 50, 65, 4))


@every_model
def test_a_batch_of_any_size_is_exported_with_the_check(name):
    model = build(name, fused=True)
    images = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), *model.input_shape), jnp.float32)
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    arrays, tree = jax.tree.flatten(state)

    def forward(arrays, images):
        return nnx.merge(graphdef, jax.tree.unflatten(tree, arrays))(images)

    assert str(jax.eval_shape(forward, arrays, images).shape[0]) == "batch"


@pytest.mark.usefixtures("unchecked_types")
def test_arrays_of_numpy_are_images_too():
    model = MODELS["PureMLP"](rngs=nnx.Rngs(0))
    model.eval()
    with jax.numpy_dtype_promotion("standard"):
        assert model(np.zeros((1, 8, 8, 3), np.float32)).shape == (1, 3)
