"""Helpers of the recipes in `configs/`."""

from pathlib import Path


class NoSuchVariantError(ValueError):
    """Raised for a variant that a recipe does not have."""


def pick_variant(variants: dict[str, str], variant: str, recipe: str) -> str:
    """The value of a recipe's variant; "" is the default one. `recipe` is its `__file__`.

    Raises:
        ValueError: if there is no such variant; the message lists them.
    """
    if not isinstance(variant, str) or variant not in variants:
        name = "/".join(Path(recipe).parts[-2:])
        raise NoSuchVariantError(f"{name} has no variant {variant!r}; it has {', '.join(filter(None, variants))}")
    return variants[variant]
