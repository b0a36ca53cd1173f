"""Finding what can be folded: reading, from the program of one call, where the outputs of layers go."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.fusing import geometry
from repmlp_jax.fusing.folded import FoldedBranch, FoldedNorm
from repmlp_jax.fusing.folding import transformed_abstractly
from repmlp_jax.fusing.marks import is_affine, is_norm, labels, layers_of, mark, trace, why_unknown
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.fusing.program import Equation, Scope, Value, loops_over, readers
from repmlp_jax.fusing.steps import AddBranches, FoldAfter, FoldBefore, Step, fold, stack_of

Example = Sequence[jax.ShapeDtypeStruct]


class Found(NamedTuple):
    """What can be folded.

    Attributes:
        steps: in their order.
        kept: number of a norm, or of a layer beside others, → why it stays.
        pixels: number of a layer → the pixels, or vectors, that its calls return.
        narrower: number of a norm that is folded → the narrower dtype that it is then computed in.
    """

    steps: list[Step]
    kept: dict[int, str]
    pixels: dict[int, int]
    narrower: dict[int, str]


class _KeptError(Exception):
    """Why something stays."""


class _End(NamedTuple):
    """A call that a value reaches.

    Attributes:
        layer: the layer's number.
        pixels: how many pixels lie beside each other in the last axis of its input.
        call: the call.
        direct: whether it reads the value itself.
    """

    layer: int
    pixels: int
    call: Equation
    direct: bool


def find_steps(
    model: nnx.Module,
    call: Callable,
    example: Example,
    *,
    chosen: Callable[[int], bool] = lambda number: True,
    dense_groups: bool = False,
) -> Found:
    """Finds what can be folded for one call of an abstract model in evaluation mode.

    What is found holds for the example and, where the model takes them, for a larger batch and larger images; and the
    folded model computes the same around its layers, even if it looks at them.

    Args:
        model: abstract; it is not changed.
        call: how it is called.
        example: the abstract inputs.
        chosen: whether the layer of a number may be changed or go.
        dense_groups: add grouped branches to convolutions of fewer groups, also where that needs more multiplications.
    """
    marked = mark(nnx.clone(model))
    try:
        unmarked, _ = trace(model, call, example)
    except Exception as error:
        shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in example)
        raise ValueError(
            f"{type(model).__name__} cannot be called with an example of {shapes}: {type(error).__name__}: {error}"
        ) from error
    try:
        traces = [trace(marked, call, example)]
    except Exception as error:  # such as reverse-mode differentiation within the call, which the marks do not take
        reason = f"the call cannot be followed: {type(error).__name__}: {error}".splitlines()[0]
        norms = [number for number, (_, layer) in enumerate(layers_of(model)) if is_norm(layer)]
        return Found([], dict.fromkeys(norms, reason), {}, {})
    traces += _larger(marked, call, example)
    refused: dict[Step, str] = {}
    seen_pools = False
    while True:
        found = [_Finder(model, *traced, chosen, dense_groups, refused) for traced in traces]
        for finder in found:
            finder.find()
        if found[0].pooled and not seen_pools:
            seen_pools = True
            for more in range(5, 33, 2):
                # A model may be written for a batch of one.
                candidates = (_traced_larger(marked, call, example, 2, more, batch) for batch in (1, 0))
                traces += next(filter(None, candidates), [])
            continue
        steps: list[set[Step]] = [set(one.steps) for one in found]
        every, common = set[Step]().union(*steps), steps[0].intersection(*steps)
        new = dict.fromkeys(every - common, "it holds for the size of the example only")
        if not new:
            seen = _seen_by_the_model(model, call, example, found[0].steps, unmarked, traces[0][0])
            new = dict.fromkeys(seen, "the model's code looks at its layers, and computes something else without it")
        if not new:
            return found[0].result()
        refused |= new


def _larger(marked, call, example) -> list:
    """The traces for larger examples that the model takes: what is constant for a size may not be for another."""
    rank = max((len(array.shape) for array in example), default=0)

    def traced(factor, more, batch, axes):
        return _traced_larger(marked, call, example, factor, more, batch, axes)

    def grown(batch, axes=None):
        # Odd sizes show which pools are padded; one of these is odd once halved, too, be it rounded up or down.
        odd = [one for more in (1, 3) for one in traced(2, more, batch, axes)]
        if odd or not (twice := traced(2, 0, batch, axes)):
            return odd
        # Only the multiples of a number: three times the size, and the nearest that it takes.
        nearest = (traced(1, more, batch, axes) for more in (2, 4, 8, 16, 32))
        return twice + traced(3, 0, batch, axes) + next(filter(None, nearest), [])

    for batch in (1, 0):  # a model may be written for a batch of one
        found = grown(batch)
        # The last axis need not be that of the channels: tokens have none.
        found += grown(batch, range(1, rank)) if found else []
        found = found or [one for axis in range(1, rank) for one in grown(batch, {axis})]
        found = found or traced(1, 0, batch, ())
        if found:
            return found
    return []


def _traced_larger(marked, call, example, factor, more, batch, axes=None) -> list:
    """The trace for a larger example, if the model takes it.

    An axis of n becomes one of n * factor + more, if it is among `axes` (None: all but the first and the last); `batch`
    is added to the first.
    """

    def larger(array):
        grown = range(1, len(array.shape) - 1) if axes is None else axes
        shape = [size * factor + more if axis in grown else size for axis, size in enumerate(array.shape)]
        return jax.ShapeDtypeStruct((shape[0] + batch, *shape[1:]) if shape else (), array.dtype)

    candidate = [larger(array) for array in example]
    try:
        return [trace(marked, call, candidate)] if candidate != list(example) else []
    except Exception:  # whatever the model's own code raises for a size that it does not take
        return []


def _seen_by_the_model(model, call, example, steps, unmarked, marked) -> set[Step]:
    """The steps after which the program around the layers is not the marked one, as the model looks at them."""

    def program(model):
        return trace(model, call, example)[0]

    def sees_marks(model, unmarked, marked):
        """Whether its code looks at the class of a layer, which the marks change."""
        names = labels(model)
        expected = unmarked.text(names)
        if marked.inlined().text(names) == expected:
            return False
        # Under `jax.vmap` the marks may have moved axes.
        return program(mark(nnx.clone(model), batched_as_usual=True)).inlined().text(names) != expected

    def differs(steps):
        folded = transformed_abstractly(lambda model: fold(model, steps), model)
        try:
            found = program(mark(nnx.clone(folded)))
            return found.text(labels(folded)) != expected or sees_marks(folded, program(folded), found)
        except Exception:  # the folded model does not run: its code needs what is gone
            return True

    def guilty(steps):
        if len(steps) < 2:
            return set(steps)
        halves = steps[: len(steps) // 2], steps[len(steps) // 2 :]
        return set().union(*(guilty(half) for half in halves if differs(half))) or set(steps)

    if not steps or sees_marks(model, unmarked, marked):
        return set(steps)
    expected = marked.text(labels(model))
    return guilty(steps) if differs(steps) else set()


def _pixels(call):
    return math.prod(call.results[0].shape[:-1])


class _Finder:
    def __init__(self, model, program, arrays, chosen, dense_groups, refused):
        self.names, self.layers = [], []
        for path, layer in layers_of(model):
            self.names.append(dotted(path))
            self.layers.append(layer)
        self.program, self.arrays = program, arrays
        self.chosen = chosen
        self.dense_groups = dense_groups
        self.refused = refused
        self.steps: list[Step] = []
        # Norms that return their input by now, and branches that return zeros.
        self.gone = {number for number, layer in enumerate(self.layers) if isinstance(layer, FoldedNorm)}
        self.zero = {number for number, layer in enumerate(self.layers) if isinstance(layer, FoldedBranch)}
        self.groups = {number: geometry.groups_of(layer) for number, layer in enumerate(self.layers)}
        self.readers = readers(self.program)
        self.kept: dict[int, list[str]] = {}
        # Why a convolution or FC takes no norm.
        self.stopped: dict[int, str] = {}
        self.narrower: dict[int, str] = {}
        # Whether a step reads through a pool, which may be padded for other sizes, four halvings deep.
        self.pooled = False

    def find(self):
        """Looks for steps until there is none."""
        while self._after() or self._before() or self._branches():
            pass

    def result(self) -> Found:
        """What was found, and why the rest stays."""
        kept = {}
        for number, layer in enumerate(self.layers):
            reasons = self.kept.get(number, [])
            if number not in self.gone | self.zero and (reasons or is_norm(layer)):
                reasons = (self._reasons_before(number, reasons) if is_norm(layer) else []) + reasons
                kept[number] = "; ".join(dict.fromkeys(reasons))
        calls = self.program.calls.items()
        pixels = {number: sum(_pixels(call) for _, call in found) for number, found in calls}
        return Found(self.steps, kept, pixels, self.narrower)

    def _take(self, step) -> bool:
        if step in self.refused:
            raise _KeptError(self.refused[step])
        self.steps.append(step)
        return True

    # A norm after a layer.

    def _after(self) -> bool:
        done = False
        self.kept = {}
        for number, layer in enumerate(self.layers):
            if is_affine(layer) and number not in self.zero:
                done |= self._into_layer_before(number)
        return done

    def _into_layer_before(self, number) -> bool:
        norms: set[int] = set()
        try:
            self._check_changes(number)
            ends = []
            for scope, call in self.program.calls[number]:
                uses = len(self.program.uses[call.results[0]])
                if uses > 1:
                    raise _KeptError(f"the output of {self._name(number)} is used {uses} times")
                found = self._follow(call.results[0], scope)
                norms |= {end.layer for end in found if is_norm(self.layers[end.layer])}
                ends += found
                if len(found) != 1:
                    raise _KeptError(f"the output of {self._name(number)} is used {len(found)} times")
            norms_after = {end.layer for end in ends}
            if not norms:
                return False
            if len(norms_after) > 1:
                raise _KeptError(f"{self._name(number)} is called with different layers after it")
            (norm,) = norms
            self._check_known(norm)
            if len(self.program.calls[norm]) != len(ends):
                raise _KeptError("it is called on other values too")
            if ends[0].pixels != 1:
                raise _KeptError(f"the channels of {self._name(number)} are spread over its features")
            self._check_stacks(number, norm, ends)
            self._take(FoldAfter(number, norm))
            self.gone.add(norm)
            before, after = (self.program.calls[one][0][1].results[0].dtype for one in (number, norm))
            if before.itemsize < after.itemsize:
                self.narrower[norm] = str(before)
            return True
        except _KeptError as reason:
            self.stopped[number] = str(reason)
            for norm in norms:
                self.kept.setdefault(norm, []).append(f"not into {self._name(number)} before it: {reason}")
            return False

    def _reasons_before(self, norm, reasons) -> list[str]:
        """Why a norm is in no layer before it, where the search from those layers did not come to it."""
        if any(" before it: " in reason for reason in reasons):
            return []
        found = []
        for _, call in self.program.calls[norm]:
            try:
                number = self._layer_before(call.operands[0])
                found.append(f"not into {self._name(number)} before it: {self.stopped[number]}")
            except _KeptError as reason:
                found.append(f"not into what is before it: {reason}")
        return found

    def _layer_before(self, value: Value) -> int:
        """The convolution or FC whose output a value is, through what keeps its channels."""
        channels = value.shape[-1]
        while (equation := self.program.producers.get(value)) is not None:
            if equation.layer is None:
                read = [one for one in equation.operands if one.constant is None and not self._is_zero(one)]
                for operand in read:
                    self._check_is_of_no_unknown_layer(operand)
                if len(read) != 1:
                    raise _KeptError(f"{equation.name} lies in between")
                if not self._adds_zero(equation, read[0]):
                    _factor(equation, read[0], channels)
                (value,) = read
            elif is_affine(self.layers[equation.layer]) and equation.layer not in self.zero:
                return equation.layer
            elif equation.layer in self.gone:
                value = equation.operands[0]
            else:
                raise _KeptError(f"{self._name(equation.layer)} lies in between")
        raise _KeptError("its input is one of the model, or comes out of a loop or branch")

    def _check_is_of_no_unknown_layer(self, value: Value):
        """Raises if a value is computed of the parameters of a layer alone whose calls are not marked."""
        of, waiting = set[Value](), [value]
        while waiting:
            one = waiting.pop()
            if one not in of:
                of.add(one)
                waiting += self.program.producers[one].operands if one in self.program.producers else []
        sources = [one for one in of if one not in self.program.producers and one.constant is None]
        read = {one.parameter and one.parameter[0] for one in sources}
        for number, arrays in enumerate(self.arrays):
            if read and read <= set(arrays) and (reason := why_unknown(self.layers[number])):
                raise _KeptError(f"{self._name(number)} lies in between, and {reason}")

    # A norm before layers.

    def _before(self) -> bool:
        done = False
        for number, layer in enumerate(self.layers):
            if is_norm(layer) and number not in self.gone | self.zero:
                done |= self._into_layers_after(number)
        return done

    def _into_layers_after(self, norm) -> bool:
        try:
            self._check_known(norm)
            ends = []
            for scope, call in self.program.calls[norm]:
                ends += self._follow(call.results[0], scope)
            after = tuple(dict.fromkeys(end.layer for end in ends))
            if norm in after:
                raise _KeptError("it is applied to its own output")
            for number in after:
                self._check_changes(number)
                self._check_takes(number, [end for end in ends if end.layer == number])
                self._check_stacks(norm, number, [end for end in ends if end.layer == number])
                if sum(end.layer == number for end in ends) != len(self.program.calls[number]):
                    raise _KeptError(f"{self._name(number)} is called on other values too")
            self._take(FoldBefore(norm, after))
            self.gone.add(norm)
            return True
        except _KeptError as reason:
            self.kept.setdefault(norm, []).append(f"not into what is after it: {reason}")
            return False

    def _check_takes(self, number, ends):
        layer, name = self.layers[number], self._name(number)
        if is_norm(layer):
            if any(end.pixels != 1 for end in ends):
                raise _KeptError(f"its channels are spread over the features of {name}")
            return
        if isinstance(layer, nnx.ConvTranspose):
            raise _KeptError(f"{name} is a transposed convolution, which puts zeros between pixels")
        if hasattr(layer, "kernel_size"):
            if geometry.padding_mode(layer) == "zeros":
                raise _KeptError(f"{name} pads with zeros, which are not normalised")
            if set(geometry.each(layer, layer.input_dilation)) != {1}:
                raise _KeptError(f"{name} puts zeros between pixels")
            if any(end.pixels != 1 for end in ends):
                raise _KeptError(f"its channels are spread over those of {name}")
        elif isinstance(layer, nnx.LinearGeneral):
            for end in ends:
                rank = len(end.call.operands[0].shape)
                axes = sorted(axis % rank for axis in (layer.axis if isinstance(layer.axis, tuple) else (layer.axis,)))
                if axes != list(range(rank - len(axes), rank)):
                    raise _KeptError(f"{name} takes other axes than the last")

    # Branches.

    def _branches(self) -> bool:
        done = False
        for scope, equation in list(self.program.live_equations(self.program.scope)):
            if equation.name == "add" and not self._is_within_a_sum(equation, scope):
                done |= self._add_branches(equation.results[0], scope)
        return done

    def _is_within_a_sum(self, equation, scope):
        uses = self.program.uses[equation.results[0]]
        return len(uses) == 1 and uses[0][1] is not None and uses[0][1].name == "add" and uses[0][0] is scope

    def _summands(self, value) -> Iterator[Value]:
        for operand in self.program.producers[value].operands:
            inner = self.program.producers.get(operand)
            if inner is not None and inner.name == "add" and len(self.program.uses[operand]) == 1:
                yield from self._summands(operand)
            elif operand.shape == value.shape:  # a number that is added is a branch of its own
                yield operand

    def _add_branches(self, total, scope) -> bool:
        by_input: dict[Value, list[int]] = {}
        for summand in self._summands(total):
            found = self._branch(summand, scope)
            if found is not None:
                by_input.setdefault(self._source(found[1]), []).append(found[0])
        done = False
        for members in by_input.values():
            affine = [number for number in members if is_affine(self.layers[number])]
            if len(members) > 1 and affine:
                done |= self._add(members, affine)
        return done

    def _branch(self, value, scope) -> tuple[int, Value] | None:
        """The layer whose output a summand is, and its input; a norm that stays is one, too."""
        while (call := self._only_call(value, scope)) is not None:
            if call.layer in self.zero:
                return None
            if call.layer not in self.gone:
                return call.layer, call.operands[0]
            value = call.operands[0]
        return None

    def _only_call(self, value, scope):
        call = self.program.producers.get(value)
        if call is None or call.layer is None or value.scope is not scope or len(self.program.uses[value]) != 1:
            return None
        return call

    def _source(self, value):
        """The value that a norm that is gone returns."""
        call = self.program.producers.get(value)
        while call is not None and call.layer in self.gone:
            value = call.operands[0]
            call = self.program.producers.get(value)
        return value

    def _add(self, members, affine) -> bool:
        target = max(affine, key=lambda number: (geometry.taps_of(self.layers[number]), -self.groups[number]))
        joined: list[int] = []
        for number in dict.fromkeys(members):
            if number == target:
                continue
            try:
                self._check_branch(number, target, [target, *joined, number])
                joined.append(number)
            except _KeptError as reason:
                self.kept.setdefault(number, []).append(f"not into {self._name(target)} beside it: {reason}")
        if not joined:
            return False
        step = AddBranches(target, tuple(joined))
        try:
            self._take(step)
        except _KeptError as reason:
            for number in joined:
                self.kept.setdefault(number, []).append(f"not into {self._name(target)} beside it: {reason}")
            return False
        self.zero |= set(joined)
        self.groups[target] = math.gcd(*(self.groups[number] for number in (target, *joined) if number in affine))
        return True

    def _check_branch(self, number, target, together):
        layer, largest = self.layers[number], self.layers[target]
        for one in (number, target):
            if is_norm(self.layers[one]):
                self._check_known(one)
            else:
                self._check_changes(one)
            if len(self.program.calls[one]) != 1:
                raise _KeptError(f"{self._name(one)} is called {len(self.program.calls[one])} times")
        if isinstance(layer, nnx.ConvTranspose | nnx.LinearGeneral) or isinstance(
            largest, nnx.ConvTranspose | nnx.LinearGeneral
        ):
            raise _KeptError("it is not a plain convolution or FC")
        if is_norm(layer) and largest.in_features != largest.out_features:
            raise _KeptError(f"{self._name(target)} changes the number of channels")
        outputs = [self.program.calls[one][0][1].results[0] for one in (number, target)]
        if outputs[0].dtype != outputs[1].dtype or outputs[0].shape != outputs[1].shape:
            raise _KeptError("their outputs differ in dtype or shape")
        if is_affine(layer):
            sizes = [self._sizes(one) for one in (number, target)]
            if sizes[0][0] != sizes[1][0] or min(sizes[0]) > sizes[1][1]:
                raise _KeptError(f"{self._name(target)} has another precision")
        for one in (layer, largest):
            if hasattr(one, "input_dilation") and set(geometry.each(one, one.input_dilation)) != {1}:
                raise _KeptError("one puts zeros between pixels")
        taps = geometry.taps_within(layer, largest)
        if isinstance(taps, str):
            raise _KeptError(taps)
        if stack_of(layer) != stack_of(largest) or self._vmapped(number) != self._vmapped(target):
            raise _KeptError("one of them is a stack")
        self._check_loops(number, target)
        self._check_groups(target, together)

    def _sizes(self, number):
        """The bytes of the numbers that a convolution or FC computes with, and of those of its kernel."""
        layer, kernel = self.layers[number], self.layers[number].kernel.get_raw_value().dtype
        computes = layer.dtype or jnp.promote_types(self.program.calls[number][0][1].operands[0].dtype, kernel)
        return jnp.dtype(computes).itemsize, kernel.itemsize

    def _check_groups(self, target, together):
        affine = [number for number in together if is_affine(self.layers[number])]
        groups = math.gcd(*(self.groups[number] for number in affine))
        if any(self.groups[number] % groups for number in affine):
            raise _KeptError("their groups differ")
        features = self.layers[target].in_features

        def work(number, groups):
            return geometry.taps_of(self.layers[number]) * features // groups

        parts = sum(work(number, self.groups[number]) for number in affine)
        if work(target, groups) > parts and not self.dense_groups:
            raise _KeptError(
                f"{self._name(target)} would have {groups} groups and not {self.groups[target]}, "
                f"which needs more multiplications; dense_groups=True folds it"
            )

    # What may change, what may go.

    def _check_known(self, number):
        layer = self.layers[number]
        if reason := why_unknown(layer) or self.program.refused.get(number):
            raise _KeptError(reason)
        if number in self.program.hidden:
            raise _KeptError(f"{self._name(number)} is called within {self.program.hidden[number]}")
        calls = self.program.calls[number]
        if not calls:
            raise _KeptError(f"{self._name(number)} is not called")
        if not self.chosen(number):
            raise _KeptError(f"{self._name(number)} is not among what is chosen by only=")
        for _, call in calls:
            found = [value.parameter and value.parameter[0] for value in call.operands[1:]]
            if found != self.arrays[number]:
                raise _KeptError(f"the parameters of {self._name(number)} are changed before it uses them")
        self._vmapped(number)

    def _check_changes(self, number):
        self._check_known(number)
        for array in self.arrays[number]:
            if self.readers.get(array, set()) - {number}:
                raise _KeptError(f"the parameters of {self._name(number)} are used elsewhere, too")

    def _check_stacks(self, one, other, ends):
        """Each layer of a stack must read the output of the same layer of the stack before it."""
        if stack_of(self.layers[one]) != stack_of(self.layers[other]):
            raise _KeptError("one of them is a stack")
        self._check_loops(one, other)
        if self._vmapped(one) and not all(end.direct for end in ends):
            raise _KeptError("it may read the output of another layer of the stack")

    def _check_loops(self, one, other):
        """In each of their scopes the same loops must go over the arrays of both."""
        loops = set(self._loops(one))
        if loops != set(self._loops(other)) or len(loops) > len({scope for scope, _ in loops}):
            raise _KeptError("other loops go over the parameters of the one than over those of the other")

    def _loops(self, number):
        for scope, call in self.program.calls[number]:
            yield from ((scope, loops_over(value)) for value in call.operands[1:])

    def _vmapped(self, number) -> int:
        """The axes of a stack over which jax.vmap goes; a loop goes over the others."""
        found = set()
        for _, call in self.program.calls[number]:
            vmapped = call.params["name"].rsplit("_", 1)[1]
            loops = {value.parameter[1] for value in call.operands[1:]}
            if vmapped == "some" or {stack_of(self.layers[number]) - depth for depth in loops} != {int(vmapped)}:
                raise _KeptError(f"{self._name(number)} is a stack, but not along the first axis of all its arrays")
            found.add(int(vmapped))
        if len(found) > 1:
            raise _KeptError(f"{self._name(number)} is called under jax.vmap in several ways")
        return found.pop()

    def _name(self, number):
        return self.names[number]

    # Where a value goes.

    def _follow(self, value: Value, scope: Scope, channels=None, weight=1.0, direct=True) -> list[_End]:
        """The calls that a value reaches through operations that keep its channels and commute with a norm."""
        channels = channels or value.shape[-1]
        ends: list[_End] = []
        if not self.program.uses[value]:
            raise _KeptError("its output is not used")
        for where, equation in self.program.uses[value]:
            if equation is None:
                raise _KeptError("its output is one of the model, or goes through a loop or branch")
            if where is not scope:
                raise _KeptError("its output is used within a loop or branch")
            if equation.layer is not None and equation.layer not in self.gone:
                if not math.isclose(weight, 1, rel_tol=1e-13):
                    raise _KeptError("a sum that is not an average lies in between")
                if equation.operands[0] is not value or value in equation.operands[1:]:
                    raise _KeptError(f"its output is a parameter of {self._name(equation.layer)}")
                ends.append(_End(equation.layer, value.shape[-1] // channels, equation, direct))
            elif equation.layer is not None or self._adds_zero(equation, value):
                ends += self._follow(equation.results[0], scope, channels, weight, direct)
            else:
                factor = _factor(equation, value, channels)
                self.pooled |= equation.name == "reduce_window_sum"
                ends += self._follow(equation.results[0], scope, channels, weight * factor, False)
        return ends

    def _adds_zero(self, equation, value):
        if equation.name != "add":
            return False
        others = [one for one in equation.operands if one is not value]
        return len(others) == 1 and self._is_zero(others[0])

    def _is_zero(self, value):
        if value.constant is not None:
            return np.ndim(value.constant) == 0 and value.constant == 0
        call = self.program.producers.get(value)
        if call is None:
            return False
        if call.name == "add":
            return all(map(self._is_zero, call.operands))
        return call.layer in self.zero or (call.layer in self.gone and self._is_zero(call.operands[0]))


def _factor(equation: Equation, value: Value, channels: int) -> float:
    """By which an operation multiplies a constant map; raises unless it keeps the channels and is linear."""
    name, params, result = equation.name, equation.params, equation.results[0]
    last = len(value.shape) - 1
    kept = _KeptError(f"{name} lies in between")
    if len(equation.operands) == 1:
        if name == "convert_element_type" and jnp.issubdtype(result.dtype, jnp.floating):
            return 1
        if name == "reshape" and params.get("dimensions") is None and result.shape and not result.shape[-1] % channels:
            return 1
        if name == "transpose" and params["permutation"][-1] == last:
            return 1
        if name == "squeeze" and last not in params["dimensions"]:
            return 1
        if name == "broadcast_in_dim":
            ends = params["broadcast_dimensions"][-1:] == (len(result.shape) - 1,)
            if ends and result.shape[-1] == value.shape[-1]:
                return 1
        if name == "slice" and result.shape[-1] == value.shape[-1]:
            return 1
        if name == "rev" and last not in params["dimensions"]:
            return 1
        if name in ("copy", "copy_p", "sharding_constraint", "optimization_barrier", "name"):
            return 1
        if name == "reduce_sum" and last not in params["axes"]:
            return math.prod(value.shape[axis] for axis in params["axes"])
        if name == "reduce_window_sum":
            window, padding = params["window_dimensions"], params["padding"]
            if any(tuple(pads) != (0, 0) for pads in padding):
                raise _KeptError("a pool with padding lies in between")
            if window[-1] == 1 == params["window_strides"][-1] and set(params.get("base_dilation") or (1,)) == {1}:
                return math.prod(window)
    elif len(equation.operands) == 2 and name in ("div", "mul"):
        first, second = equation.operands
        number = second.constant if first is value else first.constant if name == "mul" else None
        if number is not None and np.ndim(number) == 0 and float(number):
            return 1 / float(number) if name == "div" else float(number)
    raise kept
