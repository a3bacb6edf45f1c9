"""Options with a fixed set of values: which they are is said once, in the type of the field."""

import dataclasses
import os
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pytest
from typer.testing import CliRunner

from wrangan_cli.app import app
from wrangan_cli.commands.option_help import LABEL_WIDTH, choices_label, option_types
from wrangan_cli.engine.base.choices import Perceptual, ResizeFilter, check_choices, choices_in
from wrangan_cli.engine.data.image_reading import RESIZE_FILTERS
from wrangan_cli.engine.inversion.method_settings import METHODS, SETTINGS
from wrangan_cli.engine.models.encoders import KINDS
from wrangan_cli.engine.models.precision import DTYPES
from wrangan_cli.engine.training.attribute_settings import AttributeSettings
from wrangan_cli.engine.training.settings import (
    EncoderSettings,
    GeneratorSettings,
    RandomizeSettings,
    SensitivitySettings,
)
from wrangan_cli.engine.video.settings import ClipSettings

Colour = Literal["red", "green"]
runner = CliRunner()


@dataclass(frozen=True)
class Painted:
    """Settings with choices of every form."""

    colour: Colour = "red"
    shade: Colour | None = None
    frame: Literal[Colour, ""] = ""
    name: str = "none"

    def __post_init__(self) -> None:
        check_choices(self)


@dataclass(frozen=True)
class Drawn(Painted):
    """Another set of colours."""

    colour: Literal["black"] = "black"  # type: ignore[assignment]


def test_what_an_annotation_allows() -> None:
    found = {field.name: choices_in(field.type) for field in dataclasses.fields(Painted)}
    both = ("red", "green")
    assert found == {"colour": both, "shade": (*both, None), "frame": (*both, ""), "name": ()}
    assert choices_in(int | None) == ()


@pytest.mark.parametrize("name", ["colour", "shade", "frame"])
def test_a_value_that_is_no_choice(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} 'blue': expected one of red, green$"):
        Painted(**{name: "blue"})  # type: ignore[arg-type]
    assert Painted(colour="green", shade="red", frame="red", name="blue").name == "blue"


def test_an_option_of_several_classes_has_the_choices_of_all() -> None:
    types = option_types({"paint": Painted, "draw": Drawn, "paint again": Painted})
    assert choices_in(types["colour"]) == ("red", "green", "black")
    assert types["shade"] == Colour | None
    assert types["name"] is str
    assert choices_in(option_types(SETTINGS)["method"]) == METHODS


def test_the_label_is_narrow_and_has_every_choice() -> None:
    assert choices_label(str) is None
    assert choices_label(Literal["w", "z"] | None) is None
    assert choices_label(Literal["w", "z", ""]) == "<w|z>"
    assert choices_label(Perceptual) == "<lpips-vgg|\nlpips-alex|\nst-lpips-vgg|\nst-lpips-alex>"
    assert choices_label(Literal["a", "bc", "quite-a-long-choice"]) == "<choice>"
    label = choices_label(option_types(SETTINGS)["method"])
    assert label is not None
    assert label.replace("\n", "") == f"<{'|'.join(METHODS)}>"
    assert max(map(len, label.splitlines())) <= LABEL_WIDTH + 1


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        *((ClipSettings, name) for name in ("perceptual", "init")),
        *((GeneratorSettings, name) for name in ("resize_filter", "discriminator", "precision")),
        *((RandomizeSettings, name) for name in ("epsilon_per", "std_form")),
        (SensitivitySettings, "tie"),
        *((EncoderSettings, name) for name in ("kind", "backbone", "heads", "separate", "perceptual")),
        (AttributeSettings, "resize_filter"),
        *((SETTINGS["wrangan"], name) for name in ("optimizer", "penalty", "perceptual", "init")),
        (SETTINGS["sg2-w"], "protocol"),
        *((SETTINGS["pti"], name) for name in ("pti_pivot", "pti_perceptual")),
    ],
)
def test_settings_refuse_other_values(settings: Any, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} 'nonsense': expected one of "):
        settings(**{name: "nonsense"})


def test_what_is_made_by_name_is_there_for_every_choice() -> None:
    assert set(RESIZE_FILTERS) == set(get_args(ResizeFilter))
    assert set(KINDS) == set(choices_in(option_types({"": EncoderSettings})["kind"]))
    assert set(DTYPES) == set(choices_in(option_types({"": GeneratorSettings})["precision"]))


@pytest.mark.parametrize(
    "line",
    [
        ["invert", "--method", "magic"],
        ["invert", "--pti-perceptual", "magic"],
        ["train", "encoder", "--out", "x", "--backbone", "magic"],
        ["video", "invert", "a.mp4", "--init", "magic"],
        ["convert-checkpoint", "a.pt", "--out", "b", "--perceptual", "magic"],
        ["import-latents", "--space", "magic"],
    ],
)
def test_a_bad_value_is_one_line_that_names_the_choices(line: list[str]) -> None:
    result = runner.invoke(app, line)
    assert (result.exit_code, result.stdout) == (2, "")
    option = line[-2]
    told = rf"wrangan: Invalid value for '{option}': 'magic' is not one of ('[\w-]*', )+'[\w-]*'\.\n"
    assert re.fullmatch(told, result.stderr), result.stderr


def test_a_missing_option_is_one_line_too() -> None:
    result = runner.invoke(app, ["train", "generator", "--out", "x"])
    assert (result.exit_code, result.stderr) == (2, "wrangan: Missing option '--data'.\n")


def test_help_and_completion_show_the_choices() -> None:
    page = runner.invoke(app, ["invert", "--help"], env={"COLUMNS": "80"}).stdout
    column = "".join(re.findall(r"^│ (?:--method +| +)([<\w|>-]+)  ", page, flags=re.MULTILINE))
    assert f"<{'|'.join(METHODS)}>" in column
    assert re.search(r"--optimizer +[<[]adam\|lbfgs[]>] ", page)
    environment = {
        **os.environ,
        "_WRANGAN_COMPLETE": "complete_bash",
        "COMP_WORDS": "wrangan invert --method sg2",
        "COMP_CWORD": "3",
    }
    done = runner.invoke(app, [], env=environment, prog_name="wrangan")
    assert done.stdout.split() == ["sg2-w", "sg2-w-plus"]
