"""Checks `config.model_arguments` against the constructor of the model."""

import inspect
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from repmlp_jax.fusing.arguments import converted
from repmlp_jax.models.registry import MODELS
from repmlp_jax.nearest import nearest


def arguments_of(model_class: type) -> dict[str, Any]:
    """The arguments of a model's constructor: name → annotation; what `**options` takes is not known."""
    parameters = inspect.signature(model_class.__init__).parameters.values()  # type: ignore[misc]
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return {parameter.name: parameter.annotation for parameter in named if parameter.name not in ("self", "rngs")}


def _takes_others(model_class) -> bool:
    parameters = inspect.signature(model_class.__init__).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def problems_of_arguments(model: Any, arguments: ConfigDict) -> Iterator[str]:
    """What is wrong with the arguments of a model in a configuration."""
    if not isinstance(model, str) or model not in MODELS:
        return  # create_model names the nearest
    model_class, _ = MODELS[model]
    known = arguments_of(model_class)
    for name in sorted(arguments):
        if name not in known:
            if not _takes_others(model_class):
                yield f"{model_class.__name__} has no argument {name!r}; the nearest is {nearest(name, known)!r}"
        else:
            try:
                converted(f"model_arguments.{name}", arguments[name], known[name])
            except (TypeError, ValueError) as error:
                yield str(error)
