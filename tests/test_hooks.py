"""The hooks before a commit are the quick checks of CI."""

import re

from pages import ROOT


def test_every_hook_is_a_command_of_ci():
    commands = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["ruff", "ruff", "mypy"]
    assert {f"  {command}" for command in commands} <= set((ROOT / ".ci" / "run").read_text().splitlines())
