"""The shape of a model's output, without computing it."""

from typing import Any

import jax
import jax.numpy as jnp

from repmlp_jax.models.images import input_shape_of


def output_shape(model: Any) -> tuple[int, ...]:
    """The shape of the output for one image in evaluation mode, without the batch axis; the model may be abstract.

    Raises:
        ValueError: if the model returns something else than one array.
    """

    def run(model, images):
        model.eval()
        return model(images)

    output = jax.eval_shape(run, model, jax.ShapeDtypeStruct((1, *input_shape_of(model)), jnp.float32))
    if not isinstance(output, jax.ShapeDtypeStruct):
        raise ValueError(f"{type(model).__name__} returns a {type(output).__name__} for an image and not one array")
    return output.shape[1:]
