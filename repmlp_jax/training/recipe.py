"""Helpers of the recipes in `configs/`."""

from pathlib import Path


def pick_variant(variants: dict[str, str], variant: str, recipe: str) -> str:
    """The value of a recipe's variant; "" is the default one. `recipe` is its `__file__`.

    Raises:
        ValueError: if there is no such variant; the message lists them.
    """
    if variant not in variants:
        name = "/".join(Path(recipe).parts[-2:])
        raise ValueError(f"{name} has no variant {variant!r}; it has {', '.join(filter(None, variants))}")
    return variants[variant]
