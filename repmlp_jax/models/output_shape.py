"""The shape of a model's output, without computing it."""

from typing import Any

import jax
import jax.numpy as jnp

from repmlp_jax.models.images import input_shape_of


def output_shape(model: Any) -> tuple[int, ...]:
    """The shape of the output for one image in evaluation mode, without the batch axis; the model may be abstract."""

    def run(model, images):
        model.eval()
        return model(images)

    return jax.eval_shape(run, model, jax.ShapeDtypeStruct((1, *input_shape_of(model)), jnp.float32)).shape[1:]
