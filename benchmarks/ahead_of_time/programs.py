"""Compiling a row from shapes alone: neither weights nor data nor devices are there."""

import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from ahead_of_time.rows import Row
from on_accelerator.check import SMALL
from repmlp_jax import create_model, fuse_params
from repmlp_jax.fusing.macs import count_macs

# Of a training step's multiply-accumulates the forward pass does a third.
MACS_OF_A_STEP = 3


def compiled(row: Row, devices: np.ndarray) -> tuple:
    """The compiled program of a row, multiply-accumulates of one chip, and the seconds that compiling took.

    The program's parameters are those of its arguments whose names start with `parameters`.
    """
    start = time.perf_counter()
    program, macs = _lowered_forward(row, devices)
    program = program.compile()
    return program, macs // len(devices), time.perf_counter() - start


def _lowered_forward(row, devices):
    model = _evaluated(row)
    graphdef, state = nnx.split(model)
    place = SingleDeviceSharding(devices[0])

    def forward(parameters, images):
        return nnx.merge(graphdef, parameters)(images)

    dtype = jnp.bfloat16 if row.dtype == "bfloat16_parameters" else jnp.float32
    images = jax.ShapeDtypeStruct((row.batch, *model.input_shape), dtype, sharding=place)
    parameters = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state)
    return jax.jit(forward).lower(parameters, images), count_macs(forward, parameters, images)


def _evaluated(row):
    """The abstract model in evaluation mode, fused if it is to be."""
    model = nnx.eval_shape(lambda: create_model(row.model, rngs=nnx.Rngs(0), **model_arguments(row)))
    model.eval()
    return nnx.eval_shape(fuse_params, model) if row.what == "fused" else model


def model_arguments(row: Row) -> dict:
    """The arguments of the row's model."""
    dtype = jnp.dtype(row.dtype.removesuffix("_parameters"))
    param_dtype = dtype if row.dtype == "bfloat16_parameters" else jnp.dtype(jnp.float32)
    return dict(dtype=dtype, param_dtype=param_dtype) | (SMALL[row.model] if row.small else {})
