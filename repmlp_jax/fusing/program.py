"""A jaxpr as a graph in which each call of a marked layer is one equation, and calls of functions are inlined."""

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxprs_in_params

CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vmap_call",
)
LAYER, REFUSED = "fuse_params_layer_", "fuse_params_refused_"


@dataclasses.dataclass(eq=False)
class Value:
    """A value of the program.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        parameter: the number of the model's array that it is, and how many leading axes of that a loop goes over.
        constant: its value, if it is written in the program.
        origin: for the inputs of a loop's body, what they are of which value outside.
        scope: where it is computed, or the body of the loop that it is a slice for; None for other inputs.
    """

    shape: tuple[int, ...]
    dtype: Any
    parameter: tuple[int, int] | None = None
    constant: Any = None
    origin: tuple[str, "Value"] | None = None
    scope: "Scope | None" = None


@dataclasses.dataclass(eq=False)
class Equation:
    """One step of the program.

    Attributes:
        name: of the primitive.
        params: of the primitive.
        operands: what it reads, but for what its scopes read themselves.
        results: what it computes.
        layer: number of the marked layer that it calls.
        scopes: bodies and branches, each with the pairs of what it returns and the result that it becomes.
    """

    name: str
    params: dict
    operands: list[Value]
    results: list[Value]
    layer: int | None = None
    scopes: list[tuple["Scope", list[tuple[Value, Value | None]]]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(eq=False)
class Scope:
    """The equations of the program itself, of a loop's body, or of a branch."""

    equations: list[Equation] = dataclasses.field(default_factory=list)


class Program:
    """What a jaxpr computes.

    Args:
        jaxpr: its inputs are the arrays of a model and then those of a call.
        arrays: the number of arrays of the model.
        before: for each output, the number of the model's array that it is the later value of; None: another output.
        inline_layers: also inline the calls of marked layers.

    Attributes:
        scope: the program's equations.
        outputs: what it returns, without arrays of the model that stay as they are.
        uses: value → the scopes and equations that read it; None instead of an equation: it is an output.
        calls: number of a layer → its calls, each with its scope.
        refused: number of a layer → why some call of it may not be folded.
        hidden: numbers of layers that are called within a primitive that is not looked into, and its name.
    """

    def __init__(self, jaxpr: ClosedJaxpr, arrays: int, before: Sequence[int | None], *, inline_layers: bool = False):
        self.refused: dict[int, str] = {}
        self.hidden: dict[int, str] = {}
        self._read_from = jaxpr, arrays, before
        self._inline_layers = inline_layers
        self.scope = Scope()
        inputs = [_value(variable.aval) for variable in jaxpr.jaxpr.invars]
        for number, value in enumerate(inputs[:arrays]):
            value.parameter = number, 0
        self.inputs = inputs
        outputs = self._read(jaxpr.jaxpr, jaxpr.consts, inputs, self.scope)
        self.outputs = [
            value
            for value, number in zip(outputs, before, strict=True)
            if number is None or value.parameter != (number, 0)
        ]
        self._live: set[Value] = set(self.outputs)
        self._find_live(self.scope)
        self.uses: dict[Value, list[tuple[Scope, Equation | None]]] = defaultdict(list)
        self.calls: dict[int, list[tuple[Scope, Equation]]] = defaultdict(list)
        self.producers: dict[Value, Equation] = {}
        for scope, equation in self.live_equations(self.scope):
            for operand in equation.operands:
                self.uses[operand].append((scope, equation))
            for result in equation.results:
                self.producers[result] = equation
            if equation.layer is not None:
                self.calls[equation.layer].append((scope, equation))
        for value in self._live:
            if value.origin and not value.parameter:
                self.uses[value.origin[1]].append((self.scope, None))
        for scope, returns in self._returns(self.scope):
            for value in returns:
                self.uses[value].append((scope, None))
        for value in self.outputs:
            self.uses[value].append((self.scope, None))

    def inlined(self) -> "Program":
        """The program with the calls of marked layers inlined, too."""
        return Program(*self._read_from, inline_layers=True)

    def live_equations(self, scope: Scope) -> Iterator[tuple[Scope, Equation]]:
        """All equations whose results are needed, with their scopes."""
        for equation in scope.equations:
            if self._is_live(equation):
                yield scope, equation
                for inner, _ in equation.scopes:
                    yield from self.live_equations(inner)

    def text(self, labels: Sequence[str]) -> str:
        """The program in words that are the same for the same program; the model's arrays by their labels."""
        return "\n".join(_Writer(self, labels).lines())

    def _returns(self, scope):
        for _, equation in self.live_equations(scope):
            for inner, pairs in equation.scopes:
                yield inner, [value for value, result in pairs if result is None or result in self._live]

    def _is_live(self, equation):
        return any(result in self._live for result in equation.results) or bool(equation.params.get("effects_"))

    def _find_live(self, scope):
        for equation in reversed(scope.equations):
            if not self._is_live(equation):
                continue
            self._live.update(equation.operands)
            if equation.name in ("scan", "while"):  # the state of a loop is needed by its next turn
                self._live.update(result for result in equation.params["carried_"])
            for inner, pairs in equation.scopes:
                self._live.update(value for value, result in pairs if result is None or result in self._live)
                self._find_live(inner)
                self._live.update(value.origin[1] for value in list(self._live) if value.origin)

    def _read(self, jaxpr: Jaxpr, constants: Sequence, operands: Sequence[Value], scope: Scope) -> list[Value]:
        values = dict(zip(jaxpr.invars, operands, strict=True))
        values |= {variable: _constant(value) for variable, value in zip(jaxpr.constvars, constants, strict=True)}

        def get(atom):
            return _constant(atom.val) if isinstance(atom, Literal) else values[atom]

        for equation in jaxpr.eqns:
            found = [get(atom) for atom in equation.invars]
            results = self._equation(equation, found, scope)
            values.update(zip(equation.outvars, results, strict=True))
        return [get(atom) for atom in jaxpr.outvars]

    def _equation(self, equation, operands, scope):
        name, params = equation.primitive.name, equation.params
        called = str(params.get("name", "")) if name in ("jit", "pjit") else ""
        inner = _called(equation) if name in CALLS else None
        if called.startswith(REFUSED):
            refused, reason = called.removeprefix(REFUSED).split("_", 1)
            self.refused[int(refused)] = reason
            return operands
        if called.startswith(LAYER) and not self._inline_layers:
            return self._append(scope, equation, operands, layer=int(called.removeprefix(LAYER).split("_")[0]))
        if inner is not None:
            return self._read(inner.jaxpr, inner.consts, operands, scope)
        if name == "scan":
            return self._scan(equation, operands, scope)
        if name == "cond":
            return self._cond(equation, operands, scope)
        if name == "while":
            return self._while(equation, operands, scope)
        for number in _layers_within(params):
            self.hidden[number] = name
        return self._append(scope, equation, operands)

    def _append(self, scope, equation, operands, layer=None):
        results = [_value(variable.aval, scope) for variable in equation.outvars]
        name, params = equation.primitive.name, dict(equation.params)
        if equation.effects:
            params["effects_"] = True
        if name in ("convert_element_type", "broadcast_in_dim", "reshape") and np.ndim(operands[0].constant) == 0:
            results[0].constant = operands[0].constant
        scope.equations.append(Equation(name, params, operands, results, layer))
        return results

    def _scan(self, equation, operands, scope):
        params = equation.params
        inner = params["jaxpr"]
        # By ranks, since the names of their numbers are others in later versions of JAX.
        second = _same_ranks(equation.invars, inner.jaxpr.invars)
        first = second - _same_ranks(equation.outvars, inner.jaxpr.outvars)
        fixed, state, rows = operands[:first], operands[first:second], operands[second:]
        slices = [
            _part("slice", row, variable.aval) for row, variable in zip(rows, inner.jaxpr.invars[second:], strict=True)
        ]
        body, state, returned = self._loop(inner, fixed, state, slices, inner.jaxpr.invars[first:second])
        for part in slices:
            part.scope = body
        results, pairs, carried = self._carried(equation, operands[first:second], state, returned, scope)
        by_slice = {part: row for part, row in zip(slices, rows, strict=True)}
        for value, variable in zip(returned[len(state) :], equation.outvars[len(state) :], strict=True):
            results.append(by_slice.get(value) or _value(variable.aval, scope))
            if value not in by_slice:
                pairs.append((value, results[-1]))
        shown = {name: params[name] for name in ("length", "reverse")}
        return self._append_loop(scope, "scan", shown, results, carried, [(body, pairs)])

    def _while(self, equation, operands, scope):
        params = equation.params
        first, second = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        inner, asked = params["body_jaxpr"], params["cond_jaxpr"]
        variables = inner.jaxpr.invars[second - first :]
        body, state, returned = self._loop(inner, operands[first:second], operands[second:], [], variables)
        results, pairs, carried = self._carried(equation, operands[second:], state, returned, scope)
        condition = Scope()
        (answer,) = self._read(asked.jaxpr, asked.consts, [*operands[:first], *state], condition)
        scopes = [(condition, [(answer, None)]), (body, pairs)]
        return self._append_loop(scope, "while", {}, results, carried, scopes)

    def _loop(self, inner, fixed, state, slices, variables):
        """Reads a loop's body; what it hands on unchanged from turn to turn is the value from before the loop."""
        start, unchanged = list(state), set[int]()
        while True:
            body = Scope()
            state = [
                value if index in unchanged else _part("state", value, variable.aval)
                for index, (value, variable) in enumerate(zip(start, variables, strict=True))
            ]
            returned = self._read(inner.jaxpr, inner.consts, [*fixed, *state, *slices], body)
            found = {index for index, value in enumerate(state) if returned[index] is value}
            if found == unchanged:
                return body, state, returned
            unchanged |= found

    def _carried(self, equation, start, state, returned, scope):
        results, pairs = [], []
        for before, value, after, variable in zip(start, state, returned, equation.outvars, strict=False):
            results.append(before if after is value else _value(variable.aval, scope))
            if after is not value:
                pairs.append((after, results[-1]))
        return results, pairs, [result for _, result in pairs]

    def _append_loop(self, scope, name, shown, results, carried, scopes):
        own = [result for _, pairs in scopes for _, result in pairs if result is not None]
        scope.equations.append(Equation(name, shown | {"carried_": carried}, [], own, None, scopes))
        return results

    def _cond(self, equation, operands, scope):
        index, *inputs = operands
        branches = []
        for branch in equation.params["branches"]:
            inner = Scope()
            branches.append((inner, self._read(branch.jaxpr, branch.consts, inputs, inner)))
        results: list[Value] = []
        pairs: list[list[tuple[Value, Value | None]]] = [[] for _ in branches]
        for position, variable in enumerate(equation.outvars):
            returned = [values[position] for _, values in branches]
            if all(value is returned[0] and value in inputs for value in returned):
                results.append(returned[0])
                continue
            results.append(_value(variable.aval, scope))
            for pair, value in zip(pairs, returned, strict=True):
                pair.append((value, results[-1]))
        scopes = [(inner, pair) for (inner, _), pair in zip(branches, pairs, strict=True)]
        own = [result for _, result in pairs[0] if result is not None]
        scope.equations.append(Equation("cond", {}, [index], own, None, scopes))
        return results


def array_paths(tree: Any) -> list[str]:
    """The path of each array of a tree."""
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(tree)]


def readers(program: Program) -> dict[int, set[int | None]]:
    """Number of an array of the model → the numbers of the layers that read it; None for anything else that does."""
    found: dict[int, set[int | None]] = {}
    for value, uses in program.uses.items():
        if value.parameter:
            layers = (None if equation is None else equation.layer for _, equation in uses)
            found.setdefault(value.parameter[0], set()).update(layers)
    return found


def loops_over(value: Value) -> tuple[Scope, ...]:
    """The bodies of the loops that go over the leading axes of an array, of which a value is a slice."""
    loops = []
    while value.origin:
        loops.append(value.scope)
        value = value.origin[1]
    return tuple(loop for loop in loops if loop is not None)


def _value(aval, scope=None) -> Value:
    return Value(tuple(getattr(aval, "shape", ())), getattr(aval, "dtype", None), scope=scope)


def _constant(value) -> Value:
    return Value(tuple(np.shape(value)), getattr(value, "dtype", np.dtype(type(value))), constant=value)


def _part(kind, value, aval) -> Value:
    part = _value(aval)
    part.origin = kind, value
    if kind == "slice" and value.parameter:
        part.parameter = value.parameter[0], value.parameter[1] + 1
    return part


def _same_ranks(outside, inside) -> int:
    """The number of inputs or outputs of a loop that its body takes or returns as they are, not row by row."""
    return sum(one.aval.ndim == other.aval.ndim for one, other in zip(outside, inside, strict=True))


def _called(equation) -> ClosedJaxpr | None:
    """The function that an equation calls, if it has its operands and results."""
    for value in equation.params.values():
        if isinstance(value, Jaxpr):
            value = ClosedJaxpr(value, ())
        if isinstance(value, ClosedJaxpr) and len(value.jaxpr.invars) == len(equation.invars):
            return value
    return None


def _layers_within(params) -> Iterator[int]:
    for jaxpr in jaxprs_in_params(params):
        for equation in jaxpr.eqns:
            name = str(equation.params.get("name", ""))
            if name.startswith(LAYER):
                yield int(name.removeprefix(LAYER).split("_")[0])
            yield from _layers_within(equation.params)


class _Writer:
    def __init__(self, program, labels):
        self.program = program
        self.labels = labels
        self.names: dict[Value, str] = {}
        self.written: list[str] = []

    def lines(self) -> list[str]:
        arrays = [value for value in self.program.inputs if value.parameter is None]
        self.written.append("inputs " + " ".join(self.name(value) for value in arrays))
        self.scope(self.program.scope)
        self.written.append("outputs " + " ".join(self.name(value) for value in self.program.outputs))
        return self.written

    def scope(self, scope):
        for equation in scope.equations:
            if not self.program._is_live(equation):
                continue
            operands = equation.operands if equation.layer is None else equation.operands[:1]
            read = " ".join(self.name(value) for value in operands)
            what = equation.name if equation.layer is None else f"layer {equation.layer}"
            shown = "" if equation.layer is not None else _shown(equation.params)
            for inner, pairs in equation.scopes:
                self.written.append(f"scope of {equation.name}")
                self.scope(inner)
                for value, result in pairs:
                    if result is None or result in self.program._live:
                        self.written.append(f"return {self.name(value)}")
            results = [value for value in equation.results if value in self.program._live]
            self.written.append(f"{' '.join(map(self.name, results))} = {what} {read} {shown}")

    def name(self, value) -> str:
        if value.parameter:
            return self.labels[value.parameter[0]] + "[]" * value.parameter[1]
        if value.constant is not None:
            return _digest(value.constant)
        if value not in self.names:
            self.names[value] = f"v{len(self.names)}:{value.dtype}{list(value.shape)}"
            if value.origin:
                kind, outside = value.origin
                self.written.append(f"{self.names[value]} = {kind} of {self.name(outside)}")
        return self.names[value]


def _shown(params) -> str:
    shown = {key: value for key, value in params.items() if not key.endswith("_")}
    return re.sub(r"0x[0-9a-f]+", "", str(shown))


def _digest(constant) -> str:
    if np.ndim(constant) == 0:
        return f"{constant!r}:{getattr(constant, 'dtype', '')}"
    try:
        content = hashlib.sha256(np.asarray(constant).tobytes()).hexdigest()
    except Exception:  # random keys have no bytes
        content = ""
    return f"array {np.shape(constant)} {content}"
