"""Weights in the official PyTorch layout, both ways: the only place that knows PyTorch's names and axes.

A rule pairs our path with the official key, and the axes of our array with those of the official one. It is read in
both directions, so what goes out comes back bit for bit.
"""

import dataclasses
import re
from collections.abc import Mapping

import einops
import jax.numpy as jnp
import numpy as np
from flax import nnx

from repmlp_jax.blocks import RepMLP
from repmlp_jax.fused import FusedRepMLP


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a table: a regular expression of our whole path, the official key, and the axes of both."""

    path: str
    key: str
    axes: str

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Our array with the official axes."""
        return einops.rearrange(array, self.axes)

    def from_torch(self, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The official array with our axes, of that shape."""
        ours, theirs = self.axes.split(" -> ")
        return einops.rearrange(array, f"{theirs} -> {ours}", **self._sizes(shape))

    def torch_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The official shape of an array that has this shape here."""
        return einops.rearrange(np.broadcast_to(np.False_, shape), self.axes).shape

    def _sizes(self, shape):
        names = self.axes.split(" -> ")[0].split()
        return {name: size for name, size in zip(names, shape, strict=True) if name != "1"}


def _norm(path: str, key: str, axes: str = "c -> c") -> list[Rule]:
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    rules = [Rule(rf"{path}\.{ours}", f"{key}.{theirs}", axes) for ours, theirs in names.items()]
    return [*rules, Rule(rf"{path}\.batches", f"{key}.num_batches_tracked", " -> ")]


CONV = "kh kw i o -> o i kh kw"
FC3 = "g h w c y x o -> (g o y x) (c h w) 1 1"

GLOBAL_FCS = [
    Rule(
        r"global_perceptron\.fc1\.kernel",
        "fc1_fc2.fc1.weight",
        "down across c hidden -> hidden (c down across)",
    ),
    Rule(r"global_perceptron\.fc1\.bias", "fc1_fc2.fc1.bias", "hidden -> hidden"),
    Rule(
        r"global_perceptron\.fc2\.kernel",
        "fc1_fc2.fc2.weight",
        "hidden down across c -> (c down across) hidden",
    ),
    Rule(r"global_perceptron\.fc2\.bias", "fc1_fc2.fc2.bias", "down across c -> (c down across)"),
]
RULES = {
    RepMLP: [
        *GLOBAL_FCS,
        *_norm(r"global_perceptron\.norm", "avg.bn"),
        Rule(r"partition_perceptron\.kernel", "fc3.weight", FC3),
        *_norm(r"partition_perceptron\.norm", "fc3_bn", "g 1 h w o -> (g o h w)"),
        Rule(r"local_perceptron\.(\d+)x\1\.conv\.kernel", r"repconv\1.conv.weight", CONV),
        *_norm(r"local_perceptron\.(\d+)x\1\.norm", r"repconv\1.bn"),
    ],
    FusedRepMLP: [
        *GLOBAL_FCS,
        Rule("kernel", "fc3.weight", FC3),
        Rule("bias", "fc3.bias", "g h w o -> (g o h w)"),
    ],
}


def from_torch(model: nnx.Module, state_dict: Mapping[str, np.ndarray]) -> nnx.Module:
    """The model with the weights and statistics of an official state_dict.

    Args:
        model: a module with official weights: RepMLP for the training-time layout, FusedRepMLP for the deployed one.
            An abstract one (`nnx.eval_shape`) will do.
        state_dict: official key → array (anything that numpy can view).

    Returns:
        A new model; the given one stays as it is.

    Raises:
        TypeError: if there is no official layout for this module.
        ValueError: if keys are missing or left over, a shape differs, or a dtype would lose precision; all of them
            in one message.
    """
    arrays = {key: np.asarray(value) for key, value in state_dict.items()}
    graphdef, state = nnx.split(model)
    leaves = {path: variable for path, variable in nnx.to_flat_state(state)}
    rules = {path: _rule_for(model, path) for path in leaves}
    problems = [f"missing: {key}" for _, key in rules.values() if key not in arrays]
    problems += [f"not used by the model: {key}" for key in arrays.keys() - {key for _, key in rules.values()}]
    converted = {}
    for path, (rule, key) in rules.items():
        if key not in arrays:
            continue
        here, array = leaves[path], arrays[key]
        expected = rule.torch_shape(here.shape)
        if array.shape != expected:
            problems.append(f"{key} has shape {array.shape}, the model {expected}")
        elif not _fits(array, here.dtype):
            problems.append(f"{key} holds {array.dtype}, the model {here.dtype}: cast one of them")
        else:
            converted[path] = jnp.asarray(rule.from_torch(array, here.shape), here.dtype)
    if problems:
        raise ValueError(f"state_dict does not fit {type(model).__name__}:\n  " + "\n  ".join(sorted(problems)))
    new = [(path, variable.replace(converted[path])) for path, variable in leaves.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(new))


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """The weights and statistics of the model as an official state_dict: official key → numpy array.

    Raises:
        TypeError: if there is no official layout for this module.
    """
    state_dict = {}
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        rule, key = _rule_for(model, path)
        array = rule.to_torch(np.asarray(variable[...]))
        state_dict[key] = array.astype(np.int64) if array.dtype == np.int32 else np.ascontiguousarray(array)
    return state_dict


def _fits(array, dtype):
    """Whether no value can change; PyTorch's int64 batch counters fit our int32 ones where the value does."""
    if np.issubdtype(array.dtype, np.integer) and np.issubdtype(dtype, np.integer):
        return np.all(array <= np.iinfo(dtype).max)
    return np.can_cast(array.dtype, dtype, "safe")


def _rule_for(model, path) -> tuple[Rule, str]:
    name = ".".join(map(str, path))
    if type(model) not in RULES:
        known = ", ".join(sorted(cls.__name__ for cls in RULES))
        raise TypeError(f"{type(model).__name__} has no official PyTorch layout; these have: {known}")
    matches = [(rule, match) for rule in RULES[type(model)] if (match := re.fullmatch(rule.path, name))]
    if len(matches) != 1:
        raise TypeError(f"{type(model).__name__}.{name} has {len(matches)} official keys where it should have one")
    rule, match = matches[0]
    return rule, match.expand(rule.key)
