"""The command lines in the README and in docs/ name commands and options that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from wrangan_cli.app import app

ROOT = Path(__file__).parents[1]


def command_lines() -> list[str]:
    """Every `wrangan …` of the code blocks, a pipeline cut into its commands."""
    lines = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for block in (text for language, text in fenced if language in ("", "sh", "bash")):
            joined = block.replace("\\\n", " ")
            for line in joined.splitlines():
                parts = line.split("#")[0].split("|")
                found = (re.search(r"(?:^|\s)(wrangan .*)", part) for part in parts)
                lines += [match.group(1) for match in found if match]
    return lines


def test_there_are_command_lines() -> None:
    assert len(command_lines()) > 15


@pytest.mark.parametrize("line", sorted(set(command_lines())))
def test_command_line_exists(line: str) -> None:
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {
        option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
    }
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{command.name} has no option {word}"
