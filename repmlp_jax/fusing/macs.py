"""Counting multiply-accumulates from a function's jaxpr."""

import math
from collections.abc import Callable

import jax
from jax.extend.core import jaxprs_in_params

from repmlp_jax.fusing.one_platform import branch_for


def count_macs(function: Callable, *arguments) -> int:
    """Counts multiply-accumulates of all convolutions and matrix products of a function, as papers do.

    A convolution counts its whole kernel at every output pixel, including the padding; biases, norms, activations and
    pooling do not count. The function is traced, but not computed.

    Args:
        function: any traceable function. The body of a loop counts once; of forms for several platforms, the CPU's
            counts.
        arguments: its arguments, arrays or `jax.ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation) -> int:
    # A grouped convolution counts as one, even if a platform splits it.
    if equation.primitive.name in ("jit", "pjit") and equation.params["name"] == "grouped_convolution":
        return _convolution(*(variable.aval.shape for variable in (*equation.invars, *equation.outvars)))
    if equation.primitive.name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
        return math.prod(out) * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if branch := branch_for(equation):
        return _count(branch.jaxpr)
    return sum(_count(inner) for inner in jaxprs_in_params(equation.params))


def _convolution(image, kernel, out) -> int:
    return math.prod(out) * math.prod(kernel[:3])
