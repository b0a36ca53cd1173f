"""What the pages take from the code: a section for each command, and the tables of a recipe's fields."""

import inspect
import re
from collections.abc import Iterator

import typer

from repmlp_jax.cli import app
from repmlp_jax.training import config

# A field of `default_config`, and a comment on a line of its own, which begins a group of fields.
FIELD = re.compile(r"^ {12}(?P<name>\w+)=(?P<default>.+?),(?:  # (?P<meaning>.*))?$")
GROUP = re.compile(r"^ {12}# (?P<group>.*)$")


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
    for line in inspect.getsource(config.default_config).splitlines():
        if found := GROUP.match(line):
            rows = groups.setdefault(found["group"], [])
        elif found := FIELD.match(line):
            name, _, meaning = found.groups()
            rows.append(
                (_code(name), _code(_default(name)), _allowed(name), _prose(meaning))
            )
    return "\n\n".join(
        f"## {group}\n\n{_table(('field', 'default', 'allowed', 'what it is'), rows)}"
        for group, rows in groups.items()
    )


def _default(name):
    value = config.default_config()[name]
    return _literal(value.to_dict() if hasattr(value, "to_dict") else value)


def _allowed(name) -> str:
    if name in config.CHOICES:
        return ", ".join(_code(_literal(choice)) for choice in config.CHOICES[name])
    words = [words for words, _, names in config.RANGES if name in names]
    return "".join(words).removeprefix("be ").replace("not be", "not")


def _prose(comment: str) -> str:
    return re.sub(r'"\w*"|`\w+`', lambda found: _code(found[0].strip("`")), comment)


def _literal(value) -> str:
    return repr(value).replace("'", '"')


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
