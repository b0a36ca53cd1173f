"""Comparing a model with its fused form, on random inputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.fusing.folding import Folding
from repmlp_jax.fusing.modules import dotted, iterate_nodes

# Of the largest output. Folding is exact; these are the rounding errors of networks of a hundred layers.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "float16": 0.02, "bfloat16": 0.1}


def check_equal(model: nnx.Module, fused: nnx.Module, folding: Folding):
    """Compares the outputs of a model and its fused form, at the highest precision of products.

    Models that are traced or abstract are not compared.

    Raises:
        ValueError: if they differ; the message names the first module whose output differs.
    """
    arrays = jax.tree.leaves((nnx.state(model), nnx.state(fused)))
    if any(isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct) for array in arrays):
        return
    random = np.random.default_rng(0)
    inputs = [_random(random, array) for array in folding.inputs]
    with jax.default_matmul_precision("highest"):
        found = [_outputs(one, folding, inputs) for one in (model, fused)]
        error, tolerance = _difference(*found), _tolerance([*arrays, *found[0]], model)
        if error <= tolerance:
            return
        first = _first_that_differs(model, fused, folding, inputs, tolerance)
    raise ValueError(
        f"the fused {type(model).__name__} differs from the trained one by {error:.1e} of the largest output, which is "
        f"more than {tolerance:g}{f'; the first module whose output differs is {first}' if first else ''}"
    )


def _random(random, array):
    if jnp.issubdtype(array.dtype, jnp.floating):
        return jnp.asarray(random.standard_normal(array.shape), array.dtype)
    return jnp.asarray(random.integers(0, 2, array.shape), array.dtype)


def _outputs(model, folding, inputs) -> list:
    model = nnx.clone(model)
    model.eval()
    graphdef, state = nnx.split(model)
    forward = jax.jit(lambda state: jax.tree.leaves(folding.apply(nnx.merge(graphdef, state), *inputs)))
    return forward(state)


def _difference(outputs, others) -> float:
    largest = 0.0
    for one, other in zip(outputs, others, strict=True):
        one, other = (np.asarray(array).astype(np.float64) for array in (one, other))
        size = np.abs(one).max(initial=0)
        error = np.abs(one - other).max(initial=0) / (size or 1)
        largest = max(largest, np.inf if np.isnan(error) else error)
    return largest


def _tolerance(arrays, model) -> float:
    dtypes = {str(array.dtype) for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)}
    named = (getattr(module, "dtype", None) for _, module in iterate_nodes(model) if isinstance(module, nnx.Module))
    dtypes |= {str(jnp.dtype(dtype)) for dtype in named if dtype is not None}
    return max((TOLERANCES[dtype] for dtype in dtypes if dtype in TOLERANCES), default=TOLERANCES["float32"])


def _first_that_differs(model, fused, folding, inputs, tolerance) -> str | None:
    """The path of the first module, innermost ones first, that both models hold and whose outputs differ."""
    outputs = _recorded(model, folding, inputs)
    others = dict(_recorded(fused, folding, inputs))
    return next((path for path, output in outputs if path in others and _differ(output, others[path], tolerance)), None)


def _differ(output, other, tolerance):
    return output.shape == other.shape and _difference([output], [other]) > tolerance


def _recorded(model, folding, inputs) -> list[tuple[str, Any]]:
    """Paths and outputs of the modules below the model, in the order in which their calls return."""
    found: list[tuple[str, Any]] = []
    model = nnx.clone(model)
    model.eval()
    for path, module in iterate_nodes(model):
        if isinstance(module, nnx.Module) and path:
            module.__class__ = _recording(type(module), dotted(path), found)
    folding.apply(model, *inputs)
    return found


def _recording(kind, path, found):
    def call(self, *arguments, **options):
        output = super(recording, self).__call__(*arguments, **options)
        if isinstance(output, jax.Array) and not isinstance(output, jax.core.Tracer):
            found.append((path, output))
        return output

    recording = type(kind)(kind.__name__, (kind,), {"__call__": call})
    return recording
