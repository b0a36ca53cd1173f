"""Compiling a row from shapes alone: neither weights nor data nor devices are there."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from on_accelerator.check import SMALL

from ahead_of_time.rows import Row
from repmlp_jax import create_model, fuse_params, quantise_params
from repmlp_jax.fusing.macs import count_macs
from repmlp_jax.models.output_shape import output_shape
from repmlp_jax.tasks.classification import loss_of_batch
from repmlp_jax.training import sharding
from repmlp_jax.training.optimizer import make_optimizer
from repmlp_jax.training.recipe_file import load_recipe
from repmlp_jax.training.step import init_state, make_step

# Of the models whose names start so.
RECIPES = {
    "pure_mlp": "cifar.py",
    "wide_convnet": "cifar.py",
    "RepMLPNet": "imagenet_repmlpnet.py",
    "RepMLP-Res50": "imagenet_resnet50.py",
}
FOLDER = Path(__file__).resolve().parents[2] / "configs"
# The backward pass takes twice the multiply-accumulates of the forward pass.
MACS_OF_A_STEP = 3
STEPS_PER_EPOCH = 1000  # Only the learning rate depends on it.


def lowered(row: Row, devices: np.ndarray) -> tuple:
    """The program of a row before it is compiled, and the multiply-accumulates of one chip.

    The paths of the program's arguments that are parameters start with `parameters`, or with `state.parameters`.
    """
    program, macs = (_step if row.what == "step" else _forward)(row, devices)
    return program, macs // len(devices)


def _forward(row, devices):
    """A lowered forward pass in evaluation mode, and its multiply-accumulates."""
    model = nnx.eval_shape(lambda: make_model(row))
    model.eval()
    if row.what != "trained":
        model = nnx.eval_shape(fuse_params, model)
    if row.what == "int8":
        model = nnx.eval_shape(quantise_params, model)
    graphdef, state = nnx.split(model)

    def forward(parameters, images):
        return nnx.merge(graphdef, parameters)(images)

    (device,) = devices
    dtype = jnp.bfloat16 if row.dtype == "bfloat16_parameters" else jnp.float32
    images = jax.ShapeDtypeStruct((row.batch, *model.input_shape), dtype)
    arguments = placed((state, images), SingleDeviceSharding(device))
    return jax.jit(forward).lower(*arguments), count_macs(forward, *arguments)


def _step(row, devices):
    """A lowered training step as `training.loop` makes it, and its multiply-accumulates."""
    config = recipe(row)
    mesh = sharding.make_mesh(fsdp=row.fsdp, devices=devices)
    sharding.check_batch_size("batch", row.batch, mesh)
    optimizer, _ = make_optimizer(config, STEPS_PER_EPOCH)
    model = nnx.eval_shape(lambda: make_model(row))
    channels, classes = model.input_shape[-1], output_shape(model)[-1]
    loss = functools.partial(
        loss_of_batch, config=config, classes=classes, mean=(0.5,) * channels, std=(0.25,) * channels
    )
    sizes = dict(batch_size=row.batch, steps_per_epoch=STEPS_PER_EPOCH, accumulate=config.accumulate)
    one_step = make_step(nnx.graphdef(model), optimizer, loss, **sizes, mesh=mesh)
    state = jax.eval_shape(lambda: init_state(make_model(row), optimizer))
    shardings = sharding.state_shardings(state, mesh)
    image = jax.ShapeDtypeStruct((row.batch, *model.input_shape), jnp.uint8)
    batch = dict(image=image, label=jax.ShapeDtypeStruct((row.batch,), jnp.int32))
    arguments = (
        jax.tree.map(placed, state, shardings),
        placed(batch, sharding.split_batch(mesh)),
        placed(jax.eval_shape(lambda: jax.random.key(0)), sharding.replicated(mesh)),
    )
    forward_macs = count_macs(lambda model, images: model(images), model, image.update(dtype=jnp.float32))
    step = jax.jit(one_step, donate_argnums=0, out_shardings=shardings)
    return step.lower(*arguments), MACS_OF_A_STEP * forward_macs


def make_model(row: Row) -> nnx.Module:
    """The row's model, to be made abstractly.

    Raises:
        ValueError: if there is no model of its name, or no small one.
    """
    dtype = jnp.dtype(row.dtype.removesuffix("_parameters"))
    param_dtype = dtype if row.dtype == "bfloat16_parameters" else jnp.dtype(jnp.float32)
    if row.small and row.model not in SMALL:
        raise ValueError(f"there is no small {row.model}; there are {', '.join(SMALL)}")
    arguments = SMALL[row.model] if row.small else {}
    return create_model(row.model, rngs=nnx.Rngs(0), dtype=dtype, param_dtype=param_dtype, **arguments)


def recipe(row: Row) -> ConfigDict:
    """The configuration by which the row's model is trained.

    Raises:
        ValueError: if no recipe for classification trains it.
    """
    for beginning, file in RECIPES.items():
        if row.model.startswith(beginning):
            return load_recipe(str(FOLDER / file))
    raise ValueError(f"row {row}: only models for classification are trained here: {', '.join(RECIPES)}")


def placed(tree, place):
    """Abstract arrays with a sharding."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)
