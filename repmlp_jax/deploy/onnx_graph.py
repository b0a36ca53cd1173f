"""A jaxpr as an ONNX graph: its equations become nodes, by the table in `onnx_operators`."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax.extend.core import Literal
from onnx import helper, numpy_helper

from repmlp_jax.fusing.one_platform import CALLS, branch_for

INPUT, OUTPUT = "images", "outputs"
# No platform of JAX, so what an operation does by default is written.
PLATFORM = "onnx"
# A message of protobuf is smaller, with its weights.
LARGEST = 2**31
INLINED = (*CALLS, "closed_call", "custom_vjp_call")
Operators = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A variable of the jaxpr as a value of the graph.

    It may be transposed, so that layouts change only where an operator needs another one, and may have size 1 along an
    axis where the variable repeats itself, as ONNX's operators broadcast.

    Attributes:
        name: name in the graph.
        shape: sizes of the variable's axes, or 1 where it is broadcast.
        order: the variable's axes in the order of the value's.
    """

    name: str
    shape: tuple
    order: tuple[int, ...]

    def positions(self, axes: Sequence[int]) -> list[int]:
        """The axes of the value that are these axes of the variable."""
        return [self.order.index(axis) for axis in axes]


class Graph:
    """Nodes and constants, as they are added.

    Args:
        opset: version of ONNX's operators.
        batch: the dimension of a JAX shape that stands for the batch.
    """

    def __init__(self, opset: int, batch: Any):
        self.opset = opset
        self.batch = batch
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._known: dict[Any, Any] = {}

    def add(self, operator: str, *inputs: Any, outputs: int = 1, **attributes) -> Any:
        """Adds a node, unless there is the same one; returns the name of its output, or a list of several."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        key = (operator, *names, outputs, repr(attributes))
        if key not in self._known:
            name = f"{operator}_{len(self.nodes)}"
            found = [name] if outputs == 1 else [f"{name}_{index}" for index in range(outputs)]
            self.nodes.append(helper.make_node(operator, names, found, name, **attributes))
            self._known[key] = name if outputs == 1 else found
        return self._known[key]

    def constant(self, array: Any) -> str:
        """The name of a constant."""
        array = np.asarray(array)
        key = (array.dtype, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = name = f"constant_{len(self.constants)}"
            self.constants[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def value(self, value: Any, order: Sequence[int] | None = None, shape: Sequence | None = None) -> str:
        """The name of a value with its axes in an order; with `shape`, that of the variable, it is not broadcast."""
        if not isinstance(value, Tensor):
            array = np.asarray(value)
            if shape is not None and not is_static(shape):
                return self.value(self.tensor(array), order, shape)
            array = array if shape is None else np.broadcast_to(array, shape)
            return self.constant(array if order is None else array.transpose(order))
        order = tuple(range(len(value.shape))) if order is None else tuple(order)
        name = value.name
        if order != value.order:
            name = self.add("Transpose", name, perm=value.positions(order))
        if shape is not None and tuple(shape) != value.shape:
            # Expand broadcasts both ways, so 1 leaves an axis as it is.
            sizes = zip(shape, value.shape, strict=True)
            wanted = [1 if size == held else size for size, held in sizes]
            name = self.add("Expand", name, self.sizes([wanted[axis] for axis in order]))
        return name

    def tensor(self, array: Any) -> Tensor:
        """A constant as a value of the graph."""
        return Tensor(self.constant(array), np.shape(array), tuple(range(np.ndim(array))))

    def sizes(self, shape: Sequence) -> Any:
        """A shape as a constant or, where it depends on the batch, as the name of a value."""
        if is_static(shape):
            return np.array(shape, np.int64)
        batch = self.add("Slice", self.add("Shape", INPUT), np.array([0]), np.array([1]))
        parts = [
            np.array([size]) if isinstance(size, int) else self.add("Mul", batch, np.array([self._images(size)]))
            for size in shape
        ]
        return self.add("Concat", *parts, axis=0)

    def reshape(self, name: str, old: Sequence, new: Sequence) -> str:
        """Reshapes a value that has its axes in order."""
        if tuple(old) == tuple(new):
            return name
        free = [axis for axis, size in enumerate(new) if not isinstance(size, int)]
        kept = [axis for axis in free[:-1] if axis < len(old) and old[axis] == new[axis]]
        if len(kept) < len(free[:-1]):
            raise ValueError(f"of {tuple(old)} it makes {tuple(new)}: several axes depend on the batch")
        sizes = [0 if axis in kept else -1 if axis in free else size for axis, size in enumerate(new)]
        return self.add("Reshape", name, np.array(sizes, np.int64))

    def _images(self, size) -> int:
        factor, rest = divmod(size, self.batch)
        if not isinstance(factor, int) or rest != 0:
            raise ValueError(f"a size of {size} is not a multiple of the batch")
        return factor


def is_static(shape: Sequence) -> bool:
    """Whether a shape does not depend on the batch."""
    return all(isinstance(size, int) for size in shape)


def to_onnx(
    function: Callable, weights: Any, images: jax.ShapeDtypeStruct, opset: int, operators: Operators
) -> onnx.ModelProto:
    """Writes a function of weights and of a batch of images, of any size, as an ONNX model.

    The weights are constants. What depends on them alone is computed here.

    Args:
        function: takes weights and images, and returns an array.
        weights: a PyTree of arrays.
        images: their shape and dtype; the first axis is symbolic.
        opset: version of ONNX's operators.
        operators: name of a primitive → function of the graph, the equation, and its operands, which returns what
            stands for the result, or a list if there are several.

    Raises:
        ValueError: if there is a primitive that is not in `operators`, or it is used in a way that ONNX lacks.
    """
    program = jax.make_jaxpr(function)(weights, images)
    outputs: Any = program.out_avals[0]
    graph = Graph(opset, images.shape[0])
    argument = Tensor(INPUT, images.shape, tuple(range(len(images.shape))))
    (result,) = _evaluate(graph, operators, program.jaxpr, program.consts, [*jax.tree.leaves(weights), argument])
    name = graph.value(result, shape=outputs.shape)
    graph.nodes.append(helper.make_node("Identity", [name], [OUTPUT], OUTPUT))
    nodes = _simplified(graph)
    used = {name for node in nodes for name in node.input}
    constants = [constant for name, constant in graph.constants.items() if name in used]
    if (size := sum(len(constant.raw_data) for constant in constants)) >= LARGEST:
        raise ValueError(f"its weights take {size:,} bytes, and an ONNX file holds less than {LARGEST:,}")
    written = helper.make_graph(nodes, "model", [_described(INPUT, images)], [_described(OUTPUT, outputs)], constants)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(written, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))


def _described(name, aval):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype))
    return helper.make_tensor_value_info(
        name, kind, [size if isinstance(size, int) else str(size) for size in aval.shape]
    )


def _evaluate(graph, operators, jaxpr, constants, arguments) -> list:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(atom):
        if not isinstance(atom, Literal):
            return values[atom]
        aval: Any = atom.aval
        return np.asarray(atom.val, aval.dtype)

    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "platform_index":
            continue  # only the choice reads it
        branch = branch_for(equation, PLATFORM)
        operands = [read(atom) for atom in (equation.invars[1:] if branch else equation.invars)]
        inner = branch or (name in INLINED and equation.params.get("jaxpr", equation.params.get("call_jaxpr")))
        if inner:
            body, held = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            results = _evaluate(graph, operators, body, held, operands)
        elif _is_known(equation, operands):
            results = _computed(equation, operands)
        elif name in operators:
            try:
                results = operators[name](graph, equation, *operands)
            except ValueError as error:
                raise ValueError(f"ONNX has no form of this {name}: {error}") from error
        else:
            raise ValueError(
                f"it uses JAX's primitive {name}, and what can be written is {', '.join(sorted(operators))}"
            )
        values.update(zip(equation.outvars, results if isinstance(results, list) else [results], strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _is_known(equation, operands) -> bool:
    """Whether an equation can be computed now; a broadcast constant stays small until it is needed in full."""
    shapes = [atom.aval.shape for atom in (*equation.invars, *equation.outvars)]
    depends = equation.primitive.name == "dim_as_value" or any(isinstance(value, Tensor) for value in operands)
    return not depends and equation.primitive.name != "broadcast_in_dim" and all(map(is_static, shapes))


def _computed(equation, operands) -> list:
    shapes = [atom.aval.shape for atom in equation.invars]
    whole = [
        value if np.shape(value) == shape else jnp.broadcast_to(value, shape)
        for value, shape in zip(operands, shapes, strict=True)
    ]
    results = equation.primitive.bind(*whole, **equation.primitive.get_bind_params(equation.params))
    return list(results) if equation.primitive.multiple_results else [results]


def _simplified(graph) -> list:
    """The nodes that the outputs need, with reshapes of reshapes and sums after convolutions merged."""
    makers = {name: node for node in graph.nodes for name in node.output}
    uses = Counter(name for node in graph.nodes for name in node.input)
    for node in graph.nodes:
        maker = makers.get(node.input[0])
        if maker is None:
            continue
        if node.op_type == maker.op_type == "Reshape" and 0 not in _array(graph, node.input[1]):
            node.input[0] = maker.input[0]
        elif node.op_type == "Add" and maker.op_type in ("Conv", "ConvTranspose") and uses[node.input[0]] == 1:
            bias = _array(graph, node.input[1])
            if len(maker.input) == 2 and bias is not None and _is_for_channels(bias, graph, maker):
                maker.input.append(graph.constant(bias.ravel()))
                maker.output[0] = node.output[0]
                node.Clear()
    return _needed([node for node in graph.nodes if node.op_type])


def _array(graph, name):
    return numpy_helper.to_array(graph.constants[name]) if name in graph.constants else None


def _is_for_channels(bias, graph, conv) -> bool:
    """Whether an array has a number for each channel that a convolution gives, of maps with channels first."""
    if conv.input[1] not in graph.constants:
        return False
    features, per_group, *sides = graph.constants[conv.input[1]].dims
    if conv.op_type == "ConvTranspose":
        features = per_group * next(attribute.i for attribute in conv.attribute if attribute.name == "group")
    return bias.size == features and (features == 1 or bias.shape == (features, *(1 for _ in sides)))


def _needed(nodes) -> list:
    needed, found = {OUTPUT}, []
    for node in reversed(nodes):
        if needed & set(node.output):
            needed |= set(node.input)
            found.append(node)
    return found[::-1]
