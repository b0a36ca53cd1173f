"""The published models by name."""

import difflib

from flax import nnx

from repmlp_jax.models.cifar import ABLATIONS, PureMLP, WideConvNet

# name → class and the arguments that make it this model: plain values, to be read as a table.
MODELS = {
    "pure_mlp": (PureMLP, {}),
    **{f"pure_mlp_{ablation}": (PureMLP, {"ablation": ablation}) for ablation in ABLATIONS},
    "wide_convnet": (WideConvNet, {}),
}


def list_models() -> list[str]:
    """The names that `create_model` knows."""
    return list(MODELS)


def create_model(name: str, *, rngs: nnx.Rngs, **overrides) -> nnx.Module:
    """Builds a published model.

    Args:
        name: one of `list_models()`.
        rngs: source of the initial weights.
        overrides: arguments of the model's class that replace or add to those of the name.

    Raises:
        ValueError: if there is no such model; the message has the nearest name.
    """
    if name not in MODELS:
        nearest = difflib.get_close_matches(name, MODELS, n=1, cutoff=0)[0]
        raise ValueError(f"no model is called {name!r}; the nearest is {nearest!r}. There are: {', '.join(MODELS)}")
    model_class, arguments = MODELS[name]
    return model_class(**{**arguments, **overrides}, rngs=rngs)
