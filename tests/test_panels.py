"""The headings of the help pages: those of few methods have the methods' names."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from wrangan_cli.app import app
from wrangan_cli.commands import train, video
from wrangan_cli.commands.invert import invert
from wrangan_cli.commands.panels import (
    ADVERSARIAL,
    ATTRIBUTES,
    CLIP,
    ENCODER,
    MACHINE,
    Panels,
    inversion_panels,
)
from wrangan_cli.engine.inversion.method_settings import METHODS, all_settings, methods_having

INVERT = inversion_panels()
COMMANDS: list[tuple[Panels, list[Callable[..., Any]]]] = [
    (INVERT, [invert]),
    (ADVERSARIAL, [train.generator, train.randomize]),
    (ENCODER, [train.encoder]),
    (ATTRIBUTES, [train.attributes]),
    (CLIP, [video.invert]),
]


def options(command: Callable[..., Any]) -> list[str]:
    return [p.name for p in inspect.signature(command).parameters.values()]


@pytest.mark.parametrize(("panels", "commands"), COMMANDS)
def test_every_name_is_an_option_under_one_heading(
    panels: Panels, commands: list[Callable[..., Any]]
) -> None:
    names = [name for some in panels.values() for name in some]
    assert len(names) == len(set(names))
    assert set(names) <= {option for command in commands for option in options(command)}


def test_few_stand_under_no_heading() -> None:
    """Those that say what comes in and what goes out."""
    under = {name for some in INVERT.values() for name in some}
    assert set(options(invert)) - under == {"context", "photos", "out", "model", "overwrite"}


def test_a_setting_of_few_methods_says_so_in_its_heading() -> None:
    for heading, names in INVERT.items():
        for name in names:
            assert (heading == "pti only") == name.startswith("pti_"), name
    assert "beta2" in INVERT["wrangan, weight-tuning only"]
    assert INVERT["sg2-w, sg2-w-plus only"] == ["projection_lr"]


def test_every_setting_is_an_option_that_says_which_methods_have_it() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    helps = {p.name: getattr(p, "help", "") for p in command.commands["invert"].params}
    assert set(all_settings()) <= set(helps)
    heading_of = {name: heading for heading, names in INVERT.items() for name in names}
    for name in all_settings():
        methods = methods_having(name)
        told = f"{helps[name]} {heading_of[name]}"
        if methods != METHODS and name != "steps":
            assert ", ".join(methods) in told, name
    assert re.match(r"wrangan, weight-tuning: .* 500\. sg2-w, sg2-w-plus: .*1000", helps["steps"])


@pytest.mark.parametrize("line", [["evaluate"], ["report"], ["train", "encoder"]])
def test_paragraphs_fill_the_page(line: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    for word in line:
        command = command.commands[word]
    page = CliRunner().invoke(app, [*line, "--help"], env={"COLUMNS": "1000"}).stdout
    paragraphs = [" ".join(part.split()) for part in (command.callback.__doc__ or "").split("\n\n")]
    assert len(paragraphs) > 1
    assert set(paragraphs) <= {shown.strip() for shown in page.splitlines()}


def test_the_page_shows_the_headings_in_order() -> None:
    page = CliRunner().invoke(app, ["invert", "--help"], env={"COLUMNS": "100"}).stdout
    shown = re.findall(r"^╭─ (.+?) ─+╮$", page, flags=re.MULTILINE)
    assert shown == ["Arguments", "Options", *INVERT]
    assert shown[-1] == MACHINE
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    # Moving an option of one command leaves the others' where they are.
    edit = {p.name: getattr(p, "rich_help_panel", None) for p in command.commands["edit"].params}
    assert edit["as_json"] is None
