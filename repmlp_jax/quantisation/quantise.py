"""Post-training quantisation: a fused model with its kernels in int8, a quarter of the size.

(Qwix quantises plain Flax models. Of a fused RepMLP it quantises FC1, FC2 and linear layers, but silently leaves FC3
and all convolutions in floating point, since it does not find weights that are reshaped or passed on before the
product.)
"""

import dataclasses
import math
import warnings
from collections.abc import Iterator
from typing import Any

from flax import nnx

from repmlp_jax.blocks.repmlp import FusedRepMLP
from repmlp_jax.blocks.repmlpnet import FusedRepMLPNetBlock
from repmlp_jax.fusing.algebra import fusing_dtype
from repmlp_jax.fusing.fuse import check_module, check_weights, fusable_modules
from repmlp_jax.fusing.host import transformed_on_host
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.fusing.report import change, table
from repmlp_jax.quantisation import quantised as int8

BLOCKS: tuple[Any, ...] = (FusedRepMLP, FusedRepMLPNetBlock)
NNX_LAYERS = (nnx.Conv, nnx.Linear, nnx.LinearGeneral)
# Their `kernel` becomes int8; their `bias` stays.
LAYERS = (*BLOCKS, *NNX_LAYERS)
UNKNOWN = f"no kernel of {', '.join(layer.__name__ for layer in LAYERS)}"


def quantise_params(model: nnx.Module) -> nnx.Module:
    """Returns a fused model with its kernels rounded to int8.

    The kernel of every fused block, `nnx.Conv`, `nnx.Linear` and `nnx.LinearGeneral`, at any depth, becomes int8 with a
    floating-point scale for each output; the error is at most half a scale. Biases and factors of channels stay as they
    are; `quantise_report` lists them all. The result is a new model; the given model is not changed.

    Only weights are in int8: a kernel is converted to floating point when it is used, and arithmetic stays as before.

    This is a pure transformation, like `fuse_params`: it works under `jax.jit`, `jax.vmap` over a stack of models, and
    `nnx.eval_shape`. A quantised model can be saved, but not trained.

    Args:
        model: a fused model.

    Returns:
        The quantised model.

    Raises:
        TypeError: if `model` is not an NNX module.
        ValueError: if it is not fused; if a parameter or a running statistic is NaN or infinite, or a running variance
            is negative (traced values cannot be checked).

    Warns:
        UserWarning: if there is nothing to quantise, or an array stays that is not a kernel, a bias or a vector.

    Examples:
        >>> from flax import nnx
        >>> from repmlp_jax import RepMLP, fuse_params, quantise_params
        >>> block = RepMLP(4, 4, image_size=(6, 6), partition_size=(3, 3), rngs=nnx.Rngs(0))
        >>> in_int8 = quantise_params(fuse_params(block))
        >>> in_int8.kernel.values.dtype
        dtype('int8')
    """
    _check_model(model, "quantise_params")
    quantised = transformed_on_host(_quantised, model)
    _warn_of_what_stays(model, quantised)
    return quantised


def _quantised(model):
    check_weights(model, "quantise")
    model = nnx.clone(model)
    layers = _layers(model)
    for path, layer in layers:
        _check_axes(path, layer)
    # A kernel that two layers share stays shared.
    shared = {id(layer.kernel): layer for _, layer in layers}
    kernels = {key: _int8_kernel(layer) for key, layer in shared.items()}
    for _, layer in layers:
        layer.kernel = kernels[id(layer.kernel)]
    return model


def dequantise_params(model: nnx.Module) -> nnx.Module:
    """Converts a model with int8 weights back to a fused model in floating point, of that model's size and speed.

    Its kernels have the values of the int8 kernels, so its outputs are those of the quantised model.

    Raises:
        TypeError: if `model` is not an NNX module.
        ValueError: if the model is not quantised.
    """
    check_module(model, "dequantise_params")
    if not is_quantised(model):
        raise ValueError("dequantise_params takes only models of quantise_params")
    return transformed_on_host(_dequantised, model)


def _dequantised(model):
    model = nnx.clone(model)
    nodes = [node for _, node in nnx.iter_graph(model) if _is_layer(node)]
    layers = [layer for layer in nodes if isinstance(layer.kernel, int8.Int8Kernel)]
    kernels = {id(layer.kernel): nnx.Param(layer.kernel[...]) for layer in layers}
    for layer in layers:
        layer.kernel = kernels[id(layer.kernel)]
    return model


@dataclasses.dataclass(frozen=True)
class ParameterReport:
    """The changes to one parameter.

    Attributes:
        path: path in the model.
        kind: class of the module that holds it.
        shape: its shape.
        nbytes: bytes before and after, including the scales of a kernel.
        kept: why it stays as it is; None if it becomes int8.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    nbytes: tuple[int, int]
    kept: str | None


@dataclasses.dataclass(frozen=True)
class QuantiseReport:
    """The changes to a model; `print` shows them as a table.

    Attributes:
        parameters: every parameter of the model.
        nbytes: bytes of all parameters before and after.
    """

    parameters: tuple[ParameterReport, ...]
    nbytes: tuple[int, int]

    def __str__(self) -> str:
        rows = [("parameter", "kind", "shape", "bytes", "")]
        for row in self.parameters:
            place = "int8" if row.kept is None else f"stays: {row.kept}"
            rows.append((row.path, row.kind, "×".join(map(str, row.shape)), change(row.nbytes), place))
        rows.append(("total", "", "", change(self.nbytes), ""))
        return table(rows)


def quantise_report(model: nnx.Module) -> QuantiseReport:
    """Lists for every parameter of a fused model whether it becomes int8 or why it stays, and its bytes.

    It computes nothing and also takes abstract models.

    Args:
        model: a fused model, or a quantised one.

    Raises:
        TypeError: if `model` is not an NNX module.
        ValueError: if it is not fused.
    """
    _check_model(model, "quantise_report")
    kernels = {id(layer.kernel): layer for _, layer in _layers(model)}
    rows = []
    for path, owner, parameter in _parameters(model):
        before = parameter.size * parameter.dtype.itemsize
        if layer := kernels.get(id(parameter)):
            summed = math.prod(parameter.shape[axis] for axis in summed_axes(layer))
            after = parameter.size + parameter.size // summed * fusing_dtype(parameter.dtype).itemsize
            rows.append(ParameterReport(dotted(path), type(owner).__name__, parameter.shape, (before, after), None))
        else:
            why = _why_it_stays(path, owner, parameter)
            rows.append(ParameterReport(dotted(path), type(owner).__name__, parameter.shape, (before, before), why))
    return QuantiseReport(tuple(rows), (sum(row.nbytes[0] for row in rows), sum(row.nbytes[1] for row in rows)))


def is_quantised(model: nnx.Module) -> bool:
    """Whether `quantise_params` made a model."""
    check_module(model, "is_quantised")
    return any(isinstance(node, int8.Int8Kernel) for _, node in nnx.iter_graph(model))


def summed_axes(layer: Any) -> tuple[int, ...]:
    """The axes of a layer's kernel that each output sums over."""
    if isinstance(layer, FusedRepMLP | FusedRepMLPNetBlock):
        return (1,)
    if isinstance(layer, nnx.LinearGeneral):
        batch = len(layer.batch_axis)
        return tuple(range(batch, batch + len(layer.axis)))
    return tuple(range(layer.kernel.ndim - 1))


def _check_model(model, function):
    check_module(model, function)
    if unfused := [f"{dotted(path)} ({type(module).__name__})" for path, module in fusable_modules(model)]:
        raise ValueError(
            f"only a fused model is quantised, and in this {type(model).__name__} {len(unfused)} modules can still be "
            f"fused, the first {unfused[0]}: call fuse_params first"
        )


def _is_layer(node) -> bool:
    """Whether a node is one of LAYERS; a subclass of a block is not, since it may use its kernel in another way."""
    return type(node) in BLOCKS or isinstance(node, NNX_LAYERS)


def _layers(model) -> list[tuple[tuple, Any]]:
    """The layers whose kernel is not int8 yet, with their paths."""
    found = ((path, node) for path, node in nnx.iter_graph(model) if _is_layer(node))
    return [(path, layer) for path, layer in found if isinstance(layer.kernel, nnx.Param)]


def _parameters(model) -> Iterator[tuple[tuple, object, nnx.Param]]:
    """Yields every parameter once, with its path and the module that holds it."""
    nodes = dict(nnx.iter_graph(model))
    for path, node in nodes.items():
        if isinstance(node, nnx.Param):
            yield path, nodes[path[:-1]], node


def _why_it_stays(path, owner, parameter) -> str:
    if isinstance(owner, int8.Int8Kernel):
        return "quantised already"
    if path[-1] == "bias" and isinstance(owner, LAYERS):
        return "a bias"
    return "a vector" if parameter.ndim < 2 else UNKNOWN


def _check_axes(path, layer):
    """Refuses a stack of layers, which `nnx.vmap` over a constructor makes."""
    if isinstance(layer, nnx.Conv):
        axes = len(layer.kernel_size) + 2
    elif isinstance(layer, nnx.LinearGeneral):
        axes = len(layer.batch_axis) + len(layer.axis) + len(layer.out_features)
    else:
        axes = 2 if isinstance(layer, nnx.Linear) else 3
    if layer.kernel.ndim > axes:
        raise ValueError(
            f"cannot quantise {dotted(path)}: it is a stack of {type(layer).__name__}s, with a kernel of shape "
            f"{layer.kernel.shape}: use jax.vmap(quantise_params) over the stack"
        )


def _int8_kernel(layer) -> int8.Int8Kernel:
    kernel = layer.kernel.get_value()
    values, scale = int8.round_to_int8(kernel, summed_axes(layer))
    return int8.Int8Kernel(values, scale, kernel.dtype)


def _warn_of_what_stays(model, quantised):
    if not _layers(model):
        warnings.warn(
            f"nothing to quantise: {type(model).__name__} has {UNKNOWN} that is not int8 already",
            UserWarning,
            stacklevel=3,
        )
    stays = [(path, _why_it_stays(path, owner, parameter)) for path, owner, parameter in _parameters(quantised)]
    if unknown := [dotted(path) for path, why in stays if why == UNKNOWN]:
        warnings.warn(f"what stays in floating point is {UNKNOWN}: {', '.join(unknown)}", UserWarning, stacklevel=3)
