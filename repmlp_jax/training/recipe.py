"""What the recipes in `configs/` share."""

from pathlib import Path


def pick_variant(variants: dict[str, str], variant: str, recipe: str) -> str:
    """What a recipe's variant stands for, "" for none; `recipe` is its `__file__`.

    Raises:
        ValueError: if there is no such variant; the message has them all.
    """
    if variant not in variants:
        name = "/".join(Path(recipe).parts[-2:])
        raise ValueError(f"{name} has no variant {variant!r}; it has {', '.join(filter(None, variants))}")
    return variants[variant]
