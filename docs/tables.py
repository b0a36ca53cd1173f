"""What the pages take from the code: a section for each command, and the tables of a recipe's fields."""

import inspect
import re
from collections.abc import Iterator

import typer

from repmlp_jax.cli import app
from repmlp_jax.training import fields as recipe
from repmlp_jax.training.config import default_config


def commands() -> str:
    """A section for each command: what it does, how it is called, its arguments and options."""
    return "\n\n".join(_sections(typer.main.get_command(app), "repmlp-jax"))


def _sections(command, name, parent=None) -> Iterator[str]:
    context = command.context_class(command, info_name=name, parent=parent)
    if subcommands := getattr(command, "commands", {}):
        for name, subcommand in subcommands.items():
            yield from _sections(subcommand, name, context)
        return
    yield f"## {context.command_path}"
    text, _, example = inspect.cleandoc(command.help).partition("Example: ")
    yield text.strip()
    yield f"```text\n{command.get_usage(context)}\n```"
    yield f"For example:\n\n```bash\n{example}\n```"
    records = filter(
        None, (parameter.get_help_record(context) for parameter in command.params)
    )
    if rows := [(_code(names), text) for names, text in records]:
        yield _table(("argument or option", "what it is"), rows)


def fields() -> str:
    """A table for each group of a recipe's fields: name, default, the values that are allowed, what it is."""
    groups: dict[str, list] = {}
    for group, name, allowed, meaning in recipe.fields():
        row = (_code(name), _code(_default(name)), _prose(allowed), _prose(meaning))
        groups.setdefault(group, []).append(row)
    return "\n\n".join(
        f"## {group}\n\n{_table(('field', 'default', 'allowed', 'what it is'), rows)}"
        for group, rows in groups.items()
    )


def _default(name):
    value = default_config()[name]
    value = value.to_dict() if hasattr(value, "to_dict") else value
    return repr(value).replace("'", '"')


def _prose(comment: str) -> str:
    return re.sub(r'"\w*"|`\w+`', lambda found: _code(found[0].strip("`")), comment)


def _code(text: str) -> str:
    return f"`{text}`"


def _table(heads, rows) -> str:
    lines = [
        heads,
        ["---"] * len(heads),
        *([cell.replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Line of a page → what stands there instead.
TABLES = {"<!-- commands -->": commands, "<!-- fields -->": fields}
