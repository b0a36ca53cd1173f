"""Every model with parameters in bfloat16 and float16: built, trained, fused, saved, loaded and exported."""

import importlib.util

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from cases import quick_jit, random_input
from flax import nnx
from tolerance import ROUNDING_BF16, assert_close, assert_identical

from repmlp_jax import create_model, export_model, export_onnx, fuse_params, load_exported, load_model, save_model
from repmlp_jax.models.randomness import weights
from repmlp_jax.training.sharding import make_mesh
from repmlp_jax.training.step import init_state, make_step

PURE_MLP = dict(image_size=(8, 8), in_features=1, widths=(8,), partition_size=(4, 4), conv_kernels=(1, 3))
RESNET = dict(stage_sizes=(1, 2, 1, 1), image_size=(32, 32), partition_size=(2, 2), widths=(16, 32, 64, 64))
FACES = dict(stage_sizes=(1, 2), embedding_features=8, image_size=(16, 16), partition_size=(2, 2), widths=(16, 16))
SCENES = dict(num_classes=5, stage_sizes=(1, 2, 2, 1), image_size=(33, 33), partition_size=(5, 5))
NET = dict(stage_sizes=(1, 1), widths=(8, 16), partition_sizes=((4, 4), (2, 2)), sharesets=(2, 4), num_classes=5)
SMALL = {
    "pure_mlp": PURE_MLP,
    "wide_convnet": dict(image_size=(8, 8), in_features=1, widths=(4, 8)),
    "RepMLP-Res50-light-224": RESNET | dict(groups=(2, 2)),
    "RepMLP-Res50-bottleneck-224": RESNET | dict(groups=(2, 2)),
    "RepMLPNet-T224": NET,
    "RepMLP-FaceRes": FACES | dict(mid_widths=(16, 16), groups=2),
    "PSPNet-RepMLP-Res50": SCENES | dict(widths=(16, 16, 32, 32), groups=(1, 1), reduction=(1, 1), conv_kernels=(1, 3)),
}
HAS_ONNX = importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users_have_it")]


def trained_for_a_step(model, images):
    """The model after a step of SGD with momentum on how far its outputs are from 1."""
    mesh = make_mesh(devices=jax.devices()[:1])
    optimizer = optax.sgd(0.01, momentum=0.9)

    def loss(model, batch, key):
        return jnp.square(model(batch["image"]) - 1).mean(dtype=jnp.float32), jnp.int32(0)

    graphdef = nnx.graphdef(model)
    step = make_step(graphdef, optimizer, loss, batch_size=len(images), steps_per_epoch=1, mesh=mesh)
    state = quick_jit(step)(init_state(model, optimizer), {"image": images}, jax.random.key(0))
    return nnx.merge(graphdef, state.parameters, state.statistics, copy=True)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", SMALL)
def test_narrow_parameters(name, dtype, tmp_path):
    built = create_model(name, param_dtype=dtype, rngs=nnx.Rngs(0), **SMALL[name])
    images = random_input(built, 4, dtype=jnp.float32)
    model = trained_for_a_step(built, images)
    before, after = (jax.tree.leaves(nnx.state(one, nnx.Param)) for one in (built, model))
    assert {array.dtype for array in (*before, *after)} == {jnp.dtype(dtype)}
    chex.assert_tree_all_finite(after)
    assert any((one != other).any() for one, other in zip(before, after, strict=True))
    model.eval()
    fused = quick_jit(fuse_params)(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(fused, nnx.Param))} == {jnp.dtype(dtype)}
    forward = quick_jit(lambda model, images: model(images))
    outputs = forward(fused, images)
    assert_close(outputs, forward(model, images), ROUNDING_BF16)
    for which in (model, fused):
        save_model(tmp_path / "saved", which, overwrite=True)
        loaded, expected = (nnx.state(one, weights) for one in (load_model(tmp_path / "saved"), which))
        assert_identical(loaded, expected)
    export_model(fused, tmp_path / "exported")
    assert_close(load_exported(tmp_path / "exported")(images), outputs, ROUNDING_BF16)
    if HAS_ONNX:  # it compares the outputs itself
        export_onnx(fused, tmp_path / "onnx")
