"""The parts of a model that train, and the learning rate of each."""

import difflib
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from repmlp_jax.fusing.modules import dotted
from repmlp_jax.listing import listed

Path = tuple[Any, ...]


class Parts(NamedTuple):
    """Which parameters train, and how fast; without arguments, all of them at the configured rate.

    Attributes:
        trained: paths of the parameters that train; None: all.
        factors: path → factor of the learning rate; empty: 1 for all.
    """

    trained: frozenset[Path] | None = None
    factors: Mapping[Path, float] = {}

    @property
    def filter(self) -> Any:
        """The NNX filter of the parameters that train."""
        trained = self.trained
        return nnx.Param if trained is None else lambda path, _: tuple(path) in trained

    def summary(self, model: nnx.Module) -> str:
        """What trains of a model, and how fast, in a line each; empty if all does at the configured rate."""
        sizes = {path: math.prod(leaf.shape) for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))}
        lines = []
        if self.trained is not None and self.trained != sizes.keys():
            number = sum(sizes[path] for path in self.trained)
            names = listed(sorted(map(dotted, self.trained)))
            lines.append(f"trained   {number:,} of {sum(sizes.values()):,} parameters: {names}")
        if self.factors:
            least, most = min(self.factors.values()), max(self.factors.values())
            lines.append(f"rates     {least:.3g} to {most:.3g} times the learning rate")
        return "\n".join(lines)

    def with_frozen_norms(self, model: nnx.Module) -> nnx.Module:
        """The model, whose norms in parts that do not train use their running statistics; it is changed in place."""
        trained = self.trained
        if trained is not None:
            paths = {path for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}
            for path, module in nnx.iter_modules(model):
                if hasattr(module, "use_running_average") and not _nearest(path, paths) & trained:
                    module.use_running_average = True
        return model


def parts_of(config: Any, make_model: Callable[[nnx.Rngs], nnx.Module]) -> Parts:
    """The parts that `freeze`, `train_only`, `layer_decay` and `rate_factors` of a configuration ask for.

    Raises:
        ValueError: for a pattern that matches nothing, with the nearest paths; if nothing is left that trains; for a
            factor that is no number above 0, or of a part that does not train.
    """
    if not (config.freeze or config.train_only or config.rate_factors or config.layer_decay < 1):
        return Parts()
    layers: dict[Path, int] = {}

    def build():
        model = make_model(nnx.Rngs(0))
        layers.update(_layers(model))  # here, as a model that leaves `eval_shape` has its attributes in another order
        return nnx.state(model, nnx.Param)

    paths = [path for path, _ in nnx.to_flat_state(jax.eval_shape(build))]
    trained = _matching("train_only", _split(config.train_only), paths) if config.train_only else {*paths}
    trained -= _matching("freeze", _split(config.freeze), paths)
    if not trained:
        raise ValueError(f"config: with train_only={config.train_only!r} and freeze={config.freeze!r} nothing trains")
    depth = max(layers.values())
    factors = {path: config.layer_decay ** (depth - _layer(path, layers)) for path in trained}
    for pattern, factor in _factors(config.rate_factors):
        of_pattern = trained & _matching("rate_factors", [pattern], paths)
        if not of_pattern:
            raise ValueError(f"config: rate_factors={pattern!r} is of a part that does not train")
        for path in of_pattern:
            factors[path] *= factor
    return Parts(frozenset(trained), factors if {*factors.values()} != {1.0} else {})


def _nearest(path, paths) -> set[Path]:
    """The parameters of a module; without any, as a norm may be, those of the module around it."""
    below = {one for one in paths if one[: len(path)] == path}
    return below or _nearest(path[:-1], paths)


def _split(text: str | None) -> list[str]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text and not parts:
        raise ValueError(f"config: {text!r} names no part of the model")
    return parts


def _factors(text) -> Iterator[tuple[str, float]]:
    for entry in _split(text):
        pattern, _, number = entry.rpartition("=")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if not pattern or not 0 < factor < math.inf:
            raise ValueError(f"config: rate_factors: {entry!r} must be PATTERN=FACTOR, with a factor above 0")
        yield pattern.strip(), factor


def _matching(name, patterns, paths) -> set[Path]:
    """The paths that a pattern matches, or that lie below a module that it matches."""
    modules = {dotted(path[:length]): path[:length] for path in paths for length in range(1, len(path) + 1)}
    found: set[Path] = set()
    for pattern in patterns:
        matched = {modules[one] for one in fnmatch.filter(modules, pattern)}
        if not matched:
            near = ", ".join(difflib.get_close_matches(pattern, modules, n=3, cutoff=0))
            raise ValueError(f"config: {name}={pattern!r} matches no part of the model; the nearest are {near}")
        found |= {path for path in paths if any(path[:length] in matched for length in range(1, len(path) + 1))}
    return found


def _layers(model) -> dict[Path, int]:
    """Path of each block → its number from the input on."""
    places = dict(_places(model, (), ()))
    order = sorted({*places.values()})
    return {path: order.index(place) for path, place in places.items()}


def _places(module, path, place) -> Iterator[tuple[Path, tuple]]:
    """Path of each block → what sorts the blocks: the order in which attributes are made.

    Lists of a module are side by side, such as stages and the halvings after them.
    """
    first_list = next((at for at, child in enumerate(vars(module).values()) if isinstance(child, nnx.List)), 0)
    for at, (name, child) in enumerate(vars(module).items()):
        here = *path, name
        if isinstance(child, nnx.List):
            for number, stage in enumerate(child):
                if isinstance(stage, nnx.List):
                    for block in range(len(stage)):
                        yield (*here, number, block), (*place, first_list, number, block)
                else:
                    yield (*here, number), (*place, first_list, number, math.inf)
        elif isinstance(child, nnx.Module) and any(isinstance(one, nnx.List) for one in vars(child).values()):
            yield from _places(child, here, (*place, at))
        elif isinstance(child, nnx.Module | nnx.Param):
            yield here, (*place, at)


def _layer(path, layers) -> int:
    return next(layers[path[:length]] for length in range(1, len(path) + 1) if path[:length] in layers)
