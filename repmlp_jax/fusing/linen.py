"""Folding the norms of a Flax Linen model in its variables; its module stays as it is.

Linen's modules are frozen, and hold no arrays. So a norm that is folded away stays in the module, and gets the
variables of an identity: the layer before it takes its scale, and it keeps its shift.
"""

import functools
import itertools
import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core.scope import DenyList
from flax.core.scope import Scope as LinenScope
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from repmlp_jax.fusing.algebra import fusing_dtype, scale_and_shift
from repmlp_jax.fusing.finite import check_finite, has_values, on_this_process
from repmlp_jax.fusing.modules import dotted
from repmlp_jax.fusing.program import LAYER, Equation, Program, Scope, array_paths, loops_over, readers
from repmlp_jax.fusing.report import table

Variables = TypeVar("Variables", bound=Mapping[str, Any])

AFFINE = (nn.Conv, nn.ConvTranspose, nn.ConvLocal, nn.Dense, nn.DenseGeneral)
OF_THE_DATA = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.InstanceNorm)
# Of a module in the model, or, with the collection before it, of an array in the variables.
Path = tuple[str, ...]


def fuse_variables(
    module: nn.Module, variables: Variables, *example: Any, method: Callable | str | None = None, **options: Any
) -> Variables:
    """Folds the batch norms of a Linen model into the convolutions and FCs before them; `module` takes the result.

    The call `module.apply(variables, *example, method=method, **options)`, which has to be in evaluation mode, is
    traced on abstract values. A norm is folded where this shows that its input is the output of `nn.Conv`,
    `nn.ConvTranspose`, `nn.ConvLocal`, `nn.Dense` or `nn.DenseGeneral`, through reshapes and transposes that keep the
    channels last; that nothing else uses this output; and that nothing else uses the variables of both. Everything
    else stays, and `variables_report` says why. The result is valid for all calls that take the same way through the
    model's code, at any size of the batch.

    The layer's kernel and bias are multiplied by the norm's scale, in float32 (float64 for float64), and rounded to
    their dtype. The norm becomes an identity and a shift: its variance is 1 - epsilon and its scale 1, so that it
    multiplies by rsqrt(1), which on a CPU is exactly 1; its shift is its bias or, if it has none, its negative mean.
    Folding again changes no bit.

    This is a pure transformation: it works under `jax.jit`, `jax.vmap` over a stack of variables, and
    `jax.eval_shape`.

    Args:
        module: any Linen module.
        variables: its variables, with the collections "params" and "batch_stats".
        example: arguments of the call; of arrays and `jax.ShapeDtypeStruct`s only shape and dtype matter.
        method: what is called in place of `__call__`, as in `module.apply`.
        options: keyword arguments of the call, such as `train=False`.

    Returns:
        New variables of the same structure, shapes and dtypes; the given ones are not changed.

    Raises:
        TypeError: if `module` is not a Linen module, or `variables` are not a dict with "params", or abstract.
        ValueError: if a parameter or a running statistic is NaN or infinite, or a running variance is negative. (Traced
            values cannot be checked.)

    Examples:
        >>> import jax
        >>> from flax import linen as nn
        >>> from repmlp_jax import fuse_variables
        >>> net = nn.Sequential([nn.Conv(8, (3, 3)), nn.BatchNorm(use_running_average=True), nn.relu])
        >>> x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
        >>> variables = net.init(jax.random.key(1), x)
        >>> fused = fuse_variables(net, variables, x)
        >>> bool(abs(net.apply(fused, x) - net.apply(variables, x)).max() < 1e-5)
        True
    """
    _check(module, variables, "fuse_variables")
    arrays, structure, names = _flat(variables)
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
        raise TypeError("fuse_variables: the variables are abstract; jax.eval_shape of fuse_variables takes them")
    check_finite(dict(zip(map(dotted, names), arrays, strict=True)), "cannot fuse: variables")
    folds, _ = _find(module, variables, example, method, options)
    for fold in folds:
        _check_variance(fold.norm, arrays)
        _apply(fold, arrays)
    return jax.tree.unflatten(structure, arrays)


class VariablesReport(NamedTuple):
    """What `fuse_variables` does; `print` shows it as a table.

    Attributes:
        folded: path of a norm → path of the layer that it is folded into.
        kept: path of a norm → why it stays.
    """

    folded: dict[str, str]
    kept: dict[str, str]

    def __str__(self) -> str:
        rows = [(norm, f"folded into {layer}") for norm, layer in self.folded.items()]
        rows += [(norm, f"stays: {reason}") for norm, reason in self.kept.items()]
        return table([("norm", "folded or kept"), *rows])


def variables_report(
    module: nn.Module, variables: Mapping[str, Any], *example: Any, method: Callable | str | None = None, **options: Any
) -> VariablesReport:
    """What `fuse_variables` does with each norm that the call reaches.

    It takes the arguments of `fuse_variables`, and abstract variables as well.

    Raises:
        TypeError: if `module` is not a Linen module, or `variables` are not a dict with "params".
    """
    _check(module, variables, "variables_report")
    folds, kept = _find(module, variables, example, method, options)
    folded = {dotted(fold.norm.path): dotted(fold.layer.path) for fold in folds}
    return VariablesReport(folded, {dotted(path): reason for path, reason in kept.items()})


def _check(module, variables, function):
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise TypeError(f"{function}: module must be a Linen module, not {given}")
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = f"with the keys {list(variables)}" if isinstance(variables, Mapping) else type(variables).__name__
        raise TypeError(f'{function}: variables must be a dict with "params", as module.init returns it, not {given}')


def _flat(variables) -> tuple[list, Any, list[Path]]:
    """The arrays of variables, their structure, and their paths."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(variables)
    # Arrays may lie in boxes of metadata, such as nn.Partitioned.
    names = [tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey)) for path, _ in leaves]
    return [array for _, array in leaves], structure, names


class _Marks:
    """Intercepts the calls of methods, and makes each call of a layer or norm one equation of the model's jaxpr.

    Attributes:
        numbers: path and class of each layer and norm that was marked → its number.
        modules: number → the layer or norm.
        ranks: name of the function that a call became → the ranks of its input and arrays.
        kept: path of a norm → why a call of it cannot be folded.
    """

    def __init__(self):
        self.numbers: dict[tuple[Path, type], int] = {}
        self.modules: dict[int, Any] = {}
        self.ranks: dict[str, list[int]] = {}
        self.kept: dict[Path, str] = {}

    def __call__(self, call, args, kwargs, context):
        """The interceptor."""
        module = context.module
        # A root is the model itself, or a layer in its mark.
        if context.method_name != "__call__" or isinstance(module.parent, LinenScope):
            return call(*args, **kwargs)
        if isinstance(module, (nn.BatchNorm, *OF_THE_DATA)):
            if reason := _why_kept(module, args, kwargs):
                self.kept[module.path] = reason
                return call(*args, **kwargs)
        elif not _is_affine(module):
            return call(*args, **kwargs)
        x = _input(args, kwargs)
        number = self.numbers.setdefault((module.path, type(module)), len(self.numbers))
        alone = module.clone(parent=None, name=None)
        mode = [True] if isinstance(module, nn.BatchNorm) and module.use_running_average is None else []

        def layer(x, variables):
            return alone.apply(variables, x, *mode)

        layer.__name__ = layer.__qualname__ = f"{LAYER}{number}_{len(self.ranks)}"
        self.modules[number] = module
        self.ranks[layer.__name__] = [jnp.ndim(array) for array in jax.tree.leaves((x, module.variables))]
        return jax.jit(layer)(x, module.variables)


def _why_kept(norm, args, kwargs) -> str | None:
    """Why a call of a norm cannot be folded, whatever is before it."""
    if isinstance(norm, OF_THE_DATA):
        return "it normalises by the data themselves"
    if type(norm).__call__ is not nn.BatchNorm.__call__:
        return f"{type(norm).__name__} overrides __call__"
    # A mask only says what the batch's statistics are taken of.
    given = args[1] if len(args) > 1 else kwargs.get("use_running_average")
    if not (norm.use_running_average if given is None else given):
        return "it is called in training mode"
    if norm.axis not in (-1, jnp.ndim(_input(args, kwargs)) - 1):
        return f"it normalises axis {norm.axis}, not the last one"
    return None


def _input(args, kwargs):
    return args[0] if args else kwargs["x" if "x" in kwargs else "inputs"]


def _is_affine(module) -> bool:
    """Whether a module is a convolution or FC of Flax, whose output is linear in its kernel and bias."""
    none = ("mask", "dot_general", "dot_general_cls", "conv_general_dilated", "conv_general_dilated_cls")
    return (
        any(type(module).__call__ is kind.__call__ for kind in AFFINE)
        and all(getattr(module, name, None) is None for name in none)
        and module.promote_dtype is promote_dtype
    )


class _Layer(NamedTuple):
    """A layer or norm of a fold.

    Attributes:
        path: its path in the model.
        module: the module.
        arrays: names of its arrays → their numbers in the variables.
        stack: number of leading axes of its arrays, which loops go over.
    """

    path: Path
    module: Any
    arrays: dict[str, int]
    stack: int


class _Fold(NamedTuple):
    """A norm, and the layer before it that takes its scale."""

    layer: _Layer
    norm: _Layer


def _find(module, variables, example, method, options) -> tuple[list[_Fold], dict[Path, str]]:
    """What can be folded, and why other norms are kept."""
    marks = _Marks()
    finder = _Finder(_trace(marks, module, variables, example, method, options), marks, _flat(variables)[2])
    folds, kept = [], dict(marks.kept)
    for (path, _), number in marks.numbers.items():
        if isinstance(marks.modules[number], nn.BatchNorm) and path not in kept:
            try:
                folds.append(finder.fold_of(number))
            except _Kept as reason:
                kept[path] = str(reason)
    return folds, kept


def _trace(marks, module, variables, example, method, options) -> Program:
    """The program of the call. Its first inputs are the arrays of the variables."""
    arrays, structure, _ = _flat(variables)
    given, call = jax.tree.flatten((example, options))
    is_array = [isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct) for leaf in given]
    # Whatever the call stores is an output. The second name, which no collection has, is for nn.jit: for the same
    # filter it would take what it traced before, without these marks.
    mutable = DenyList(("params", uuid.uuid4().hex))
    before: list[int | None] = []

    def function(arrays, inputs):
        inputs = iter(inputs)
        leaves = [next(inputs) if here else leaf for leaf, here in zip(given, is_array, strict=True)]
        arguments, keywords = jax.tree.unflatten(call, leaves)
        everything = jax.tree.unflatten(structure, arrays)
        with nn.intercept_methods(marks):
            outputs, stored = module.apply(everything, *arguments, method=method, mutable=mutable, **keywords)
        outputs = jax.tree.leaves(outputs)
        numbers = {path: number for number, path in enumerate(array_paths(everything))}
        before[:] = [None] * len(outputs) + [numbers.get(path) for path in array_paths(stored)]
        return outputs, jax.tree.leaves(stored)

    def abstract(leaves):
        return [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

    with jax.disable_jit(False):  # which would remove the marks
        jaxpr = jax.make_jaxpr(function)(abstract(arrays), abstract(itertools.compress(given, is_array)))
    return Program(jaxpr, len(arrays), before)


class _Kept(Exception):  # noqa: N818 - no error
    """Why a norm stays."""


class _Finder:
    """Finds the layer before a norm."""

    def __init__(self, program: Program, marks: _Marks, names: list[Path]):
        self.program = program
        self.marks = marks
        self.names = names
        self.paths = {number: path for (path, _), number in marks.numbers.items()}
        self.readers = readers(program)

    def fold_of(self, norm: int) -> _Fold:
        """The fold of the norm of a number; raises _Kept if there is none."""
        if norm in self.program.hidden:
            raise _Kept(f"it is called within {self.program.hidden[norm]}")
        calls = self.program.calls[norm]
        if not calls:
            raise _Kept("its output is not used")
        before = {self._layer_before(call, scope) for scope, call in calls}
        if len(before) > 1:
            raise _Kept("it comes after several layers: " + ", ".join(map(self._name, sorted(before))))
        (layer,) = before
        if others := len(self.program.calls[layer]) - len(calls):
            raise _Kept(f"{self._name(layer)} is called {others} more times without it")
        if self._loops(layer) != self._loops(norm):
            raise _Kept(f"other loops go over its parameters than over those of {self._name(layer)}")
        return _Fold(self._described(layer), self._described(norm))

    def _layer_before(self, call: Equation, scope: Scope) -> int:
        value = call.operands[0]
        while True:
            equation = self.program.producers.get(value)
            if equation is None or value.scope is not scope:
                raise _Kept("its input comes from outside of its loop, its branch, or the model")
            is_layer = equation.layer is not None and _is_affine(self.marks.modules[equation.layer])
            if not is_layer and not _keeps_channels(equation):
                name = equation.name if equation.layer is None else self._name(equation.layer)
                raise _Kept(f"its input comes from {name}, not from a convolution or FC")
            if others := len(self.program.uses[value]) - 1:
                raise _Kept(f"its input is used in {others} other places")
            if equation.layer is not None and is_layer:
                return equation.layer
            value = equation.operands[0]

    def _described(self, number: int) -> _Layer:
        """A layer whose arrays are, in all of its calls, those of the variables, and nothing else's."""
        path, name = self.paths[number], self._name(number)
        arrays, stacks = dict[str, int](), set[int]()
        for _, call in self.program.calls[number]:
            for value in call.operands[1:]:
                if value.parameter is None or self.names[value.parameter[0]][1:-1] != path:
                    raise _Kept(f"the parameters of {name} are computed")
                array, leading = value.parameter
                arrays[self.names[array][-1]] = array
                stacks.add(leading)
            if [len(value.shape) for value in call.operands] != self.marks.ranks[call.params["name"]]:
                raise _Kept(f"{name} is called under vmap")
        if any(self.readers[array] != {number} for array in arrays.values()):
            raise _Kept(f"the parameters of {name} are used elsewhere, too")
        return _Layer(path, self.marks.modules[number], arrays, *stacks)

    def _loops(self, number: int) -> dict[Scope, tuple[Scope, ...]]:
        """For the scope of each call, the loops that go over all arrays of a layer."""
        loops: dict[Scope, tuple[Scope, ...]] = {}
        for scope, call in self.program.calls[number]:
            for value in call.operands[1:]:
                if loops.setdefault(scope, loops_over(value)) != loops_over(value):
                    raise _Kept(f"not the same loops go over all parameters of {self._name(number)}")
        return loops

    def _name(self, number):
        return dotted(self.paths[number])


def _keeps_channels(equation: Equation) -> bool:
    """Whether an operation only moves values, and each stays in its channel, which is the last axis."""
    if equation.name not in ("reshape", "transpose", "squeeze", "convert_element_type"):
        return False
    value, result = equation.operands[0], equation.results[0]
    if equation.name == "transpose" and equation.params["permutation"][-1] != len(value.shape) - 1:
        return False
    if equation.name == "squeeze" and len(value.shape) - 1 in equation.params["dimensions"]:
        return False
    return value.shape[-1:] == result.shape[-1:] and jnp.issubdtype(result.dtype, jnp.floating)


def _check_variance(norm: _Layer, arrays: list):
    var = arrays[norm.arrays["var"]]
    if has_values(var) and (negative := int((on_this_process(var) < 0).sum())):
        raise ValueError(
            f"cannot fuse {dotted(norm.path)}: {negative} of its {var.size} running variances are negative"
        )


class _Norm(NamedTuple):
    """A norm as the algebra takes it."""

    scale: Array | None
    bias: Array | None
    mean: Array
    var: Array
    epsilon: float | Array


def _apply(fold: _Fold, arrays: list):
    """Changes the arrays of the variables."""
    numbers = tuple(one.arrays for one in fold)
    norm = fold.norm.module
    # In which Flax adds epsilon.
    dtype = arrays[fold.norm.arrays["var"]].dtype if norm.force_float32_reductions else norm.param_dtype
    transposed = getattr(fold.layer.module, "transpose_kernel", False)
    given = jax.tree.map(lambda number: arrays[number], numbers)
    folded = _folded(*given, norm.epsilon, fold.norm.stack, transposed, jnp.dtype(dtype))
    for number, array in zip(jax.tree.leaves(numbers), jax.tree.leaves(folded), strict=True):
        arrays[number] = array


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _folded(
    layer: dict[str, Any], norm: dict[str, Any], epsilon: float | Array, stack: int, transposed: bool, dtype: jnp.dtype
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The layer takes the scale of the norm, which keeps the shift."""
    plain = _Norm(norm.get("scale"), norm.get("bias"), norm["mean"], norm["var"], epsilon)
    scale, shift = scale_and_shift(plain)

    def scaled(name, array):
        along = jnp.expand_dims(scale, range(stack, stack + array.ndim - scale.ndim))
        along = jnp.swapaxes(along, -1, -2) if transposed and name == "kernel" else along
        wide = max(fusing_dtype(array.dtype), scale.dtype, key=lambda dtype: dtype.itemsize)
        return (array.astype(wide) * along.astype(wide)).astype(array.dtype)

    # The variance and epsilon add up to 1, and no bit more.
    identity = dict(scale=1, bias=shift, mean=0 if "bias" in norm else -shift, var=jnp.ones((), dtype) - epsilon)
    return {name: scaled(name, array) for name, array in layer.items()}, {
        name: jnp.broadcast_to(jnp.asarray(identity[name]).astype(array.dtype), array.shape)
        for name, array in norm.items()
    }
