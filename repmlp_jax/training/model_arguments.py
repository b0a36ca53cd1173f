"""Checks `config.model_arguments` against the constructor of the model."""

import inspect
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from repmlp_jax.fusing.arguments import converted
from repmlp_jax.models.registry import MODELS
from repmlp_jax.nearest import nearest


def arguments_of(model_class: type) -> dict[str, Any]:
    """The arguments of a model's constructor: name → annotation."""
    parameters = inspect.signature(model_class.__init__).parameters.values()  # type: ignore[misc]
    return {parameter.name: parameter.annotation for parameter in parameters if parameter.name not in ("self", "rngs")}


def problems_of_arguments(model: Any, arguments: ConfigDict) -> Iterator[str]:
    """What is wrong with the arguments of a model in a configuration."""
    if not isinstance(model, str) or model not in MODELS:
        return  # create_model names the nearest
    model_class, _ = MODELS[model]
    known = arguments_of(model_class)
    for name in sorted(arguments):
        if name not in known:
            yield f"{model_class.__name__} has no argument {name!r}; the nearest is {nearest(name, known)!r}"
        else:
            try:
                converted(f"model_arguments.{name}", arguments[name], known[name])
            except (TypeError, ValueError) as error:
                yield str(error)
