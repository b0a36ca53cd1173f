"""JAX's primitives as ONNX's operators: `OPERATORS` is the table."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from onnx import helper

from repmlp_jax.deploy.onnx_graph import Graph, Tensor, is_static

# The reductions other than ReduceSum take their axes as an input from here on.
AXES_AS_INPUT = 18


def _elementwise(emit: Callable[..., str]) -> Callable[..., Any]:
    """An operation on numbers of the same place; `emit(graph, equation, *names)` adds its nodes."""

    def convert(graph, equation, *values):
        tensors = [value for value in values if isinstance(value, Tensor)]
        if not tensors:
            # All are constants that are repeated for every image: one is enough.
            alike = jnp.broadcast_arrays(*values)
            return equation.primitive.bind(*alike, **equation.primitive.get_bind_params(equation.params))
        # The layout of the largest; the others follow.
        order = max(tensors, key=lambda tensor: sum(size != 1 for size in tensor.shape)).order
        names = [_operand(graph, value, order) for value in values]
        shapes = [value.shape if isinstance(value, Tensor) else np.shape(value) for value in values]
        sizes = zip(*(shape for shape in shapes if len(shape) == len(order)), strict=True)
        shape = tuple(next((size for size in each if size != 1), 1) for each in sizes)
        return Tensor(emit(graph, equation, *names), shape, order)

    return convert


def _operand(graph, value, order):
    """The name of a tensor, or a constant without leading axes of size 1."""
    if isinstance(value, Tensor):
        return graph.value(value, order) if value.order else value.name
    array = np.asarray(value)
    array = array.transpose(order) if array.ndim else array
    first = next((axis for axis, size in enumerate(array.shape) if size != 1), max(array.ndim - 1, 0))
    return array.reshape(array.shape[first:])


def _node(operator: str) -> Callable[..., Any]:
    return _elementwise(lambda graph, equation, *names: graph.add(operator, *names))


def _commutative(operator: str) -> Callable[..., Any]:
    """Constants come second, where `Add` after a convolution is recognised as its bias."""

    def emit(graph, equation, *names):
        return graph.add(operator, *sorted(names, key=lambda name: not isinstance(name, str)))

    return _elementwise(emit)


def _maximum(graph, equation, a, b):
    # Relu takes integers from opset 14 on.
    for x, other in ((a, b), (b, a)) if equation.outvars[0].aval.dtype == np.float32 else ():
        if isinstance(other, np.ndarray) and not other.any():
            return graph.add("Relu", x)
    return graph.add("Max", a, b)


def _number(equation, value):
    return np.array(value, equation.invars[0].aval.dtype)


def _integer_pow(graph, equation, x):
    power = equation.params["y"]
    return graph.add("Mul", x, x) if power == 2 else graph.add("Pow", x, _number(equation, power))


def _cast(graph, equation, x):
    source, target = equation.invars[0].aval.dtype, np.dtype(equation.params["new_dtype"])
    return x if source == target else graph.add("Cast", x, to=_kind(target))


def _kind(dtype) -> int:
    if dtype not in (np.float32, np.int32, np.int64, np.uint8, np.int8, np.bool_):
        raise ValueError(f"numbers are of float32 or integers, and not of {dtype}: build the model with dtype=None")
    return helper.np_dtype_to_tensor_dtype(dtype)


def _logical(operator: str) -> Callable[..., Any]:
    def emit(graph, equation, *names):
        if equation.invars[0].aval.dtype != np.bool_:
            raise ValueError(f"{operator} is of truth values, not of {equation.invars[0].aval.dtype}")
        return graph.add(operator, *names)

    return _elementwise(emit)


def _select(graph, equation, which, *cases):
    if len(cases) != 2 or equation.invars[0].aval.dtype != np.bool_:
        raise ValueError(f"it chooses among {len(cases)} by {equation.invars[0].aval.dtype}, not among two by bool")
    return graph.add("Where", which, cases[1], cases[0])


def _whole(graph: Graph, equation, index: int, value, order=None) -> tuple[str, tuple[int, ...]]:
    """The name of an operand that is not broadcast, and the order of its axes: by default the one it has."""
    shape = equation.invars[index].aval.shape
    if order is None:
        order = value.order if isinstance(value, Tensor) else tuple(range(len(shape)))
    return graph.value(value, order, shape), tuple(order)


def _batch(graph, equation):
    """A number that depends on the batch, such as the number of images."""
    number = graph.add("Reshape", graph.sizes([equation.params["dim"]]), np.array([], np.int64))
    return Tensor(graph.add("Cast", number, to=_kind(equation.outvars[0].aval.dtype)), (), ())


def _identity(graph, equation, value):
    return value


def _transpose(graph, equation, value):
    permutation = tuple(equation.params["permutation"])
    if not isinstance(value, Tensor):
        return jnp.transpose(value, permutation)
    shape = tuple(value.shape[axis] for axis in permutation)
    return Tensor(value.name, shape, tuple(permutation.index(axis) for axis in value.order))


def _reshape(graph, equation, value):
    """Also squeezes and expands: the result has its axes in order."""
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return _ordered(graph.reshape(graph.value(value, shape=old), old, new), new)


def _ordered(name, shape) -> Tensor:
    return Tensor(name, tuple(shape), tuple(range(len(shape))))


def _broadcast(graph, equation, value):
    shape, axes = equation.outvars[0].aval.shape, tuple(equation.params["broadcast_dimensions"])
    old = value.shape if isinstance(value, Tensor) else np.shape(value)
    new = [1] * len(shape)
    for axis, size in zip(axes, old, strict=True):
        new[axis] = size
    if not isinstance(value, Tensor):
        return jnp.reshape(value, new)
    if len(axes) == len(shape):
        return value
    return _ordered(graph.reshape(graph.value(value), old, new), new)


def _reduce(operator: str) -> Callable[..., Any]:
    def convert(graph, equation, value):
        axes = tuple(equation.params["axes"])
        name, order = _whole(graph, equation, 0, value)
        places = sorted(order.index(axis) for axis in axes)
        if operator == "ReduceSum" or graph.opset >= AXES_AS_INPUT:
            name = graph.add(operator, name, np.array(places), keepdims=0)
        else:
            name = graph.add(operator, name, axes=places, keepdims=0)
        return Tensor(name, equation.outvars[0].aval.shape, _order_without(order, axes))

    return convert


def _order_without(order, axes) -> tuple[int, ...]:
    """The order of the axes that a reduction leaves."""
    left = [axis for axis in order if axis not in axes]
    return tuple(sorted(left).index(axis) for axis in left)


def _any_or_all(operator: str) -> Callable[..., Any]:
    """A reduction of truth values, which ONNX has for numbers alone."""

    def convert(graph, equation, value):
        name, order = _whole(graph, equation, 0, value)
        reduced = _reduce(operator)(graph, equation, Tensor(_cast_to(graph, name, np.int32), value.shape, order))
        return Tensor(_cast_to(graph, reduced.name, np.bool_), reduced.shape, reduced.order)

    return convert


def _cast_to(graph, name, dtype):
    return graph.add("Cast", name, to=_kind(np.dtype(dtype)))


def _place_of(operator: str) -> Callable[..., Any]:
    def convert(graph, equation, value):
        axes = (axis,) = equation.params["axes"]
        name, order = _whole(graph, equation, 0, value)
        name = graph.add(operator, name, axis=order.index(axis), keepdims=0)
        name = _cast_to(graph, name, equation.params["index_dtype"])
        return Tensor(name, equation.outvars[0].aval.shape, _order_without(order, axes))

    return convert


def _cumulative_sum(graph, equation, value):
    name, order = _whole(graph, equation, 0, value)
    axis = np.array(order.index(equation.params["axis"]), np.int64)
    name = graph.add("CumSum", name, axis, reverse=int(equation.params["reverse"]))
    return Tensor(name, equation.outvars[0].aval.shape, order)


def _round(graph, equation, x):
    if equation.params["rounding_method"] != lax.RoundingMethod.TO_NEAREST_EVEN:
        raise ValueError("it rounds halves away from zero, and ONNX to even numbers")
    return graph.add("Round", x)


def _concatenate(graph, equation, *values):
    order = next(value.order for value in values if isinstance(value, Tensor))
    names = [_whole(graph, equation, index, value, order)[0] for index, value in enumerate(values)]
    joined = graph.add("Concat", *names, axis=order.index(equation.params["dimension"]))
    return Tensor(joined, equation.outvars[0].aval.shape, order)


def _stack(graph, equation, *values):
    new, axis = equation.outvars[0].aval.shape, equation.params["axis"]
    one = (*new[:axis], 1, *new[axis + 1 :])
    parts = [
        graph.reshape(_whole(graph, equation, index, value, range(len(new) - 1))[0], atom.aval.shape, one)
        for index, (atom, value) in enumerate(zip(equation.invars, values, strict=True))
    ]
    return _ordered(graph.add("Concat", *parts, axis=axis), new)


def _split(graph, equation, value):
    name, order = _whole(graph, equation, 0, value)
    sizes = np.array(equation.params["sizes"], np.int64)
    names = graph.add("Split", name, sizes, outputs=len(sizes), axis=order.index(equation.params["axis"]))
    names = [names] if len(sizes) == 1 else names
    return [Tensor(name, out.aval.shape, order) for name, out in zip(names, equation.outvars, strict=True)]


def _slice(graph, name, order, bounds) -> str:
    """A part of a value; bounds are axis of the variable → (start, stop, step)."""
    if not bounds:
        return name
    starts, stops, steps = (np.array(each, np.int64) for each in zip(*bounds.values(), strict=True))
    return graph.add("Slice", name, starts, stops, np.array([order.index(axis) for axis in bounds]), steps)


def _sliced(graph, equation, value):
    name, order = _whole(graph, equation, 0, value)
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    starts, stops = equation.params["start_indices"], equation.params["limit_indices"]
    steps = equation.params["strides"] or (1,) * len(old)
    bounds = {axis: (starts[axis], stops[axis], steps[axis]) for axis in range(len(old)) if old[axis] != new[axis]}
    return Tensor(_slice(graph, name, order, bounds), new, order)


def _reverse(graph, equation, value):
    name, order = _whole(graph, equation, 0, value)
    # The stop is the largest negative number, which is before the first.
    bounds = {axis: (-1, np.iinfo(np.int64).min, -1) for axis in equation.params["dimensions"]}
    return Tensor(_slice(graph, name, order, bounds), equation.outvars[0].aval.shape, order)


def _pad(graph, equation, value, filling):
    if isinstance(filling, Tensor):
        raise ValueError("what it pads with depends on the images")
    margins = equation.params["padding_config"]
    if any(between for _, _, between in margins):
        raise ValueError(f"padding {margins} puts numbers between others")
    name, order = _whole(graph, equation, 0, value)
    old = equation.invars[0].aval.shape
    crops = {
        axis: (max(-before, 0), old[axis] - max(-after, 0), 1)
        for axis, (before, after, _) in enumerate(margins)
        if before < 0 or after < 0
    }
    name = _slice(graph, name, order, crops)
    sides = [max(margins[axis][side], 0) for side in (0, 1) for axis in order]
    if any(sides):
        name = graph.add("Pad", name, np.array(sides), np.asarray(filling))
    return Tensor(name, equation.outvars[0].aval.shape, order)


def _tile(graph, equation, value):
    name, order = _whole(graph, equation, 0, value)
    counts = equation.params["reps"]
    tiled = graph.add("Tile", name, graph.sizes([counts[axis] for axis in order]))
    return Tensor(tiled, equation.outvars[0].aval.shape, order)


def _gather(graph, equation, value, indices):
    """Takes fixed places: indexing with numbers and slices, which JAX writes so where the batch is of any size."""
    if isinstance(indices, Tensor):
        raise ValueError("places that depend on the images")
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    name, order = _whole(graph, equation, 0, value)
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    axes, places = numbers.start_index_map, np.asarray(indices, np.int64)
    places = np.broadcast_to(places, equation.invars[1].aval.shape)
    limits = [old[axis] - sizes[axis] for axis in axes]
    if numbers.operand_batching_dims or not all(map(_is_int, limits)):
        raise ValueError("an index for each image")
    if (places < 0).any() or (places > limits).any():
        raise ValueError(f"places {places.tolist()} outside the array of shape {old}")
    if places.ndim == 1:
        bounds = {axis: (start, start + sizes[axis], 1) for axis, start in zip(axes, places, strict=True)}
        taken = _slice(graph, name, order, bounds)
        cut = tuple(sizes[axis] if axis in axes else size for axis, size in enumerate(old))
        return _ordered(graph.reshape(graph.value(Tensor(taken, cut, order)), cut, new), new)
    varying = [axis for axis, column in zip(axes, places.T, strict=True) if (column != column[:1]).any()] or axes[:1]
    if len(varying) > 1 or places.ndim > 2 or tuple(axes) != tuple(numbers.collapsed_slice_dims):
        raise ValueError(f"indices of shape {places.shape} for axes {axes}")
    # What is left of an axis of one place is dropped.
    dropped = [axis for axis in axes if axis != varying[0]]
    starts = {axis: column[0] for axis, column in zip(axes, places.T, strict=True)}
    name = _slice(graph, name, order, {axis: (starts[axis], starts[axis] + 1, 1) for axis in dropped})
    (axis,), places = varying, places[:, axes.index(varying[0])]
    step = places[1] - places[0] if len(places) > 1 else 1
    if step > 0 and (np.diff(places) == step).all():
        name = _slice(graph, name, order, {axis: (places[0], places[-1] + 1, step)})
    else:
        name = graph.add("Gather", name, places, axis=order.index(axis))
    # The offset dimensions are the axes that stay, in order; the one left is that of the indices.
    (position,) = set(range(len(new))) - set(numbers.offset_dims)
    stays = [each for each in range(len(old)) if each not in axes]
    places_of = {axis: position, **dict(zip(stays, numbers.offset_dims, strict=True))}
    if not dropped:
        return Tensor(name, new, tuple(places_of[each] for each in order))
    cut = tuple(len(places) if each == axis else 1 if each in dropped else size for each, size in enumerate(old))
    kept = sorted(places_of, key=places_of.__getitem__)
    name = graph.value(Tensor(name, cut, order), (*kept, *dropped))
    return _ordered(graph.reshape(name, (*new, *(1 for _ in dropped)), new), new)


def _is_int(size) -> bool:
    return isinstance(size, int)


def _dot_general(graph, equation, a, b):
    (summed_a, summed_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    shapes = [tuple(atom.aval.shape) for atom in equation.invars]
    # A constant that is repeated for every image is one of the graph's values.
    a, b = (
        value if isinstance(value, Tensor) or is_static(shape) else graph.tensor(np.asarray(value))
        for value, shape in zip((a, b), shapes, strict=True)
    )
    if not isinstance(a, Tensor):
        # A constant belongs on the right: there ONNX multiplies any number of axes by a matrix, and quantisers look.
        product = _product(graph, b, shapes[1], batch_b, summed_b, a, shapes[0], batch_a, summed_a)
        batch, rank = len(batch_a), len(equation.outvars[0].aval.shape)
        middle = len(shapes[0]) - len(summed_a)
        order = (*range(batch), *range(middle, rank), *range(batch, middle))
        return Tensor(product, equation.outvars[0].aval.shape, order)
    product = _product(graph, a, shapes[0], batch_a, summed_a, b, shapes[1], batch_b, summed_b)
    return _ordered(product, equation.outvars[0].aval.shape)


def _product(graph, a, shape_a, batch_a, summed_a, b, shape_b, batch_b, summed_b) -> str:
    """The product with its axes in order: of the batch, then free ones of `a`, then free ones of `b`."""
    free_a, free_b = (
        [axis for axis in range(len(shape)) if axis not in (*batch, *summed)]
        for shape, batch, summed in ((shape_a, batch_a, summed_a), (shape_b, batch_b, summed_b))
    )

    def sizes(shape, axes):
        return [shape[axis] for axis in axes]

    def matrices(value, shape, *axes):
        """The value with each of these lists of axes in one, unless one already is."""
        order = [axis for each in axes for axis in each]
        merged = [math.prod(sizes(shape, each)) for each in axes[1:]]
        name = graph.value(value, order, shape)
        return graph.reshape(name, sizes(shape, order), [*sizes(shape, axes[0]), *merged])

    rows = sizes(shape_a, free_a)
    if not batch_a:
        left = matrices(a, shape_a, free_a, summed_a)
    else:
        left = matrices(a, shape_a, batch_a, free_a, summed_a)
        rows = [math.prod(rows)]
    if isinstance(b, Tensor):
        right = matrices(b, shape_b, batch_b, summed_b, free_b)
    else:
        kernel = np.asarray(jnp.broadcast_to(b, shape_b)).transpose(*batch_b, *summed_b, *free_b)
        groups, summed = kernel.shape[: len(batch_b)], math.prod(sizes(shape_b, summed_b))
        right = graph.constant(kernel.reshape(*groups, summed, math.prod(sizes(shape_b, free_b))))
    batch, columns = sizes(shape_a, batch_a), sizes(shape_b, free_b)
    product = graph.add("MatMul", left, right)
    whole = [*batch, *sizes(shape_a, free_a), *columns]
    return graph.reshape(product, [*batch, *rows, math.prod(columns)], whole)


def _convolution(graph, equation, images, kernel):
    parameters = equation.params
    numbers, groups = parameters["dimension_numbers"], parameters["feature_group_count"]
    padding, holes = parameters["padding"], parameters["rhs_dilation"]
    if parameters["batch_group_count"] != 1:
        raise ValueError("groups of the batch")
    name, _ = _whole(graph, equation, 0, images, numbers.lhs_spec)
    options: dict[str, Any] = dict(dilations=list(holes), group=groups)
    if all(step == 1 for step in parameters["lhs_dilation"]):
        if any(side < 0 for sides in padding for side in sides):
            raise ValueError(f"negative padding, {padding}")
        kernel, _ = _whole(graph, equation, 1, kernel, numbers.rhs_spec)
        pads = [sides[end] for end in (0, 1) for sides in padding]
        name = graph.add("Conv", name, kernel, strides=list(parameters["window_strides"]), pads=pads, **options)
    else:
        if isinstance(kernel, Tensor) or any(step != 1 for step in parameters["window_strides"]):
            raise ValueError("a transposed convolution with strides, or a kernel that depends on the images")
        strides = parameters["lhs_dilation"]
        kernel = np.broadcast_to(kernel, equation.invars[1].aval.shape).transpose(numbers.rhs_spec)
        features, inputs, *sides = kernel.shape
        # ONNX's kernel is that of the convolution whose transpose this is.
        kernel = np.flip(kernel, tuple(range(2, kernel.ndim))).reshape(groups, features // groups, inputs, *sides)
        kernel = kernel.swapaxes(1, 2).reshape(groups * inputs, features // groups, *sides)
        reach = [hole * (side - 1) for hole, side in zip(holes, sides, strict=True)]
        pads = [far - pair[end] for end in (0, 1) for far, pair in zip(reach, padding, strict=True)]
        # A negative margin at the end is output that is added there.
        extra = [max(-pad, 0) for pad in pads[len(reach) :]]
        if min(pads[: len(reach)]) < 0 or any(each >= step for each, step in zip(extra, strides, strict=True)):
            raise ValueError(f"a transposed convolution with padding {padding} and strides {strides}")
        pads = [max(pad, 0) for pad in pads]
        name = graph.add(
            "ConvTranspose", name, kernel, strides=list(strides), pads=pads, output_padding=extra, **options
        )
    return Tensor(name, equation.outvars[0].aval.shape, tuple(numbers.out_spec))


def _pool(operator: str, **options) -> Callable[..., Any]:
    def convert(graph, equation, value):
        parameters = equation.params
        each = [parameters[name] for name in ("window_dimensions", "window_strides", "padding", "window_dilation")]
        axes = list(zip(*each, strict=True))
        pooled = [axis for axis, (side, step, sides, _) in enumerate(axes) if (side, step, *sides) != (1, 1, 0, 0)]
        others = [axis for axis in range(len(axes)) if axis not in pooled]
        if any(step != 1 for step in parameters["base_dilation"]) or len(others) < 2:
            raise ValueError(f"windows of {parameters['window_dimensions']}, along other axes than those of space")
        # ONNX pools along the axes from the third on; with more axes that stay, some of them have windows of 1.
        order = (*others[:1], *others[-1:], *sorted([*pooled, *others[1:-1]]))
        name, _ = _whole(graph, equation, 0, value, order)
        sides, steps, padding, holes = zip(*(axes[axis] for axis in order[2:]), strict=True)
        pads = [pair[end] for end in (0, 1) for pair in padding]
        if any(step != 1 for step in holes) and (operator == "AveragePool" and graph.opset < 19):
            raise ValueError("means of windows with holes need opset 19")
        holed = {"dilations": list(holes)} if any(step != 1 for step in holes) else {}
        name = graph.add(operator, name, kernel_shape=list(sides), strides=list(steps), pads=pads, **options, **holed)
        if operator == "AveragePool":
            name = graph.add("Mul", name, np.float32(math.prod(sides)))
        return Tensor(name, equation.outvars[0].aval.shape, order)

    return convert


def _negated_pool(graph, equation, value):
    negative = _node("Neg")(graph, equation, value)
    return _node("Neg")(graph, equation, _pool("MaxPool")(graph, equation, negative))


def _clamp(graph, equation, least, x, most):
    return graph.add("Min", graph.add("Max", x, least), most)


SAME_PLACES: dict[str, str] = {
    "abs": "Abs", "ceil": "Ceil", "cos": "Cos", "div": "Div", "eq": "Equal", "erf": "Erf", "exp": "Exp",
    "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "log": "Log",
    "logistic": "Sigmoid", "lt": "Less", "min": "Min", "neg": "Neg", "pow": "Pow", "sign": "Sign", "sin": "Sin",
    "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip

# Name of a primitive → function of the graph, the equation and its operands, which returns the result.
OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: _node(operator) for name, operator in SAME_PLACES.items()},
    "add": _commutative("Add"),
    "mul": _commutative("Mul"),
    "max": _elementwise(_maximum),
    "ne": _elementwise(lambda graph, equation, a, b: graph.add("Not", graph.add("Equal", a, b))),
    "and": _logical("And"),
    "or": _logical("Or"),
    "not": _logical("Not"),
    "square": _elementwise(lambda graph, equation, x: graph.add("Mul", x, x)),
    "integer_pow": _elementwise(_integer_pow),
    "rsqrt": _elementwise(lambda graph, equation, x: graph.add("Reciprocal", graph.add("Sqrt", x))),
    "erfc": _elementwise(lambda graph, equation, x: graph.add("Sub", _number(equation, 1), graph.add("Erf", x))),
    "exp2": _elementwise(lambda graph, equation, x: graph.add("Pow", _number(equation, 2), x)),
    "log1p": _elementwise(lambda graph, equation, x: graph.add("Log", graph.add("Add", x, _number(equation, 1)))),
    "expm1": _elementwise(lambda graph, equation, x: graph.add("Sub", graph.add("Exp", x), _number(equation, 1))),
    "clamp": _elementwise(_clamp),
    "round": _elementwise(_round),
    "rem": _elementwise(lambda graph, equation, a, b: graph.add("Mod", a, b, fmod=1)),
    "is_finite": _elementwise(
        lambda graph, equation, x: graph.add("Less", graph.add("Abs", x), _number(equation, np.inf))
    ),
    "select_n": _elementwise(_select),
    "convert_element_type": _elementwise(_cast),
    "dim_as_value": _batch,
    "copy": _identity,
    "copy_p": _identity,
    "stop_gradient": _identity,
    "reshape": _reshape,
    "squeeze": _reshape,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "reduce_prod": _reduce("ReduceProd"),
    "reduce_or": _any_or_all("ReduceMax"),
    "reduce_and": _any_or_all("ReduceMin"),
    "argmax": _place_of("ArgMax"),
    "argmin": _place_of("ArgMin"),
    "cumsum": _cumulative_sum,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stack,
    "slice": _sliced,
    "rev": _reverse,
    "pad": _pad,
    "tile": _tile,
    "gather": _gather,
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "reduce_window_max": _pool("MaxPool"),
    "reduce_window_min": _negated_pool,
    "reduce_window_sum": _pool("AveragePool", count_include_pad=1),
}
