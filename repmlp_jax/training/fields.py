"""What the fields of a recipe are, from the comments of `default_config`."""

import inspect
import re
import textwrap
from typing import NamedTuple

from ml_collections import ConfigDict

from repmlp_jax.training import config

# A field of `default_config`, and a comment on a line of its own, which begins a group of fields.
FIELD = re.compile(r"^ {12}(?P<name>\w+)=(?P<default>.+?),(?:  # (?P<meaning>.*))?$")
GROUP = re.compile(r"^ {12}# (?P<group>.*)$")


class Field(NamedTuple):
    """A field: its group, its name, the values that are allowed beside its type, and what it is."""

    group: str
    name: str
    allowed: str
    meaning: str


def fields() -> list[Field]:
    """All fields in their order."""
    found, group = [], ""
    for line in inspect.getsource(config.default_config).splitlines():
        if begins := GROUP.match(line):
            group = begins["group"]
        elif field := FIELD.match(line):
            found.append(Field(group, field["name"], _allowed(field["name"]), field["meaning"]))
    return found


def described(recipe: ConfigDict) -> str:
    """The fields as flags, with the values of a recipe, for `--helpfull`."""
    lines, group = ["The fields of the recipe, with its values:"], ""
    for field in fields():
        if field.group != group:
            lines += ["", f"{field.group}:"]
        group, value = field.group, recipe[field.name]
        lines.append(f"  --config.{field.name}={value.to_dict() if isinstance(value, ConfigDict) else value!r}")
        lines.append(textwrap.fill(field.meaning, 80, initial_indent=" " * 6, subsequent_indent=" " * 6))
    return "\n".join(lines)


def _allowed(name: str) -> str:
    if name in config.CHOICES:
        return ", ".join(f'"{choice}"' for choice in config.CHOICES[name])
    words = [words for words, _, names in config.RANGES if name in names]
    return "".join(words).removeprefix("be ").replace("not be", "not")
