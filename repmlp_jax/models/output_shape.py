"""What comes out of a model, asked without computing it."""

from typing import Any

import jax
import jax.numpy as jnp


def output_shape(model: Any) -> tuple[int, ...]:
    """The shape that a model in evaluation mode gives for one image, without the batch; the model may be abstract."""

    def run(model, images):
        model.eval()
        return model(images)

    return jax.eval_shape(run, model, jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)).shape[1:]
