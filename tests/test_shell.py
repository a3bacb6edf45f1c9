"""How every command speaks: options from settings, exit codes, results on stdout alone."""

import io
import json
import logging
import os
import pickle
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from wrangan_cli import __version__
from wrangan_cli.app import app, wait_briefly
from wrangan_cli.commands import shell
from wrangan_cli.commands.generate import parse_seeds
from wrangan_cli.commands.option_help import field_docstrings
from wrangan_cli.commands.shell import Results, Shell, settings_options
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError, cause_of, is_out_of_memory
from wrangan_cli.engine.editing.directions import parse_layers


@dataclass(frozen=True)
class Base:
    """Settings that others add to."""

    steps: int = 10
    """Steps of the loop,
    in all."""
    rate: float = 0.5
    """Learning rate."""


@dataclass(frozen=True)
class Special(Base):
    """One more field, and another default."""

    steps: int = 20
    """Steps of this loop."""
    batch: int = 4
    """Images at once."""
    flip: bool = True
    """Mirror at random."""
    name: str = "none"
    """A word."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps {self.steps} is not positive")


def app_that(error: BaseException | None = None) -> typer.Typer:
    made = typer.Typer(cls=Shell)

    @made.command("work")
    @settings_options(Special)
    def work(
        path: Annotated[Path, typer.Argument(help="A file.")],
        settings: Special,
        as_json: Annotated[bool, typer.Option("--json")] = False,
    ) -> None:
        """Do it."""
        if error:
            raise error
        results = Results(as_json)
        results.wrote(path, steps=settings.steps, rate=settings.rate, flip=settings.flip)

    @made.command("other")
    def other() -> None:
        """A second command makes a group of it."""

    return made


runner = CliRunner()


def test_options_come_from_the_settings() -> None:
    shown = runner.invoke(app_that(), ["work", "--help"], env={"COLUMNS": "200", "TERM": "dumb"}).stdout
    assert "--steps" in shown
    assert "Steps of this loop." in shown
    assert "default: 20" in shown
    assert "Learning rate." in shown
    assert "--no-flip" in shown
    plain = runner.invoke(app_that(), ["work", "a.png", "--json"])
    assert json.loads(plain.stdout) == {"path": "a.png", "steps": 20, "rate": 0.5, "flip": True}
    changed = runner.invoke(
        app_that(), ["work", "a", "--steps", "3", "--rate", "1e-2", "--no-flip", "--json"]
    )
    assert json.loads(changed.stdout) == {"path": "a", "steps": 3, "rate": 0.01, "flip": False}


def test_docstrings_of_fields_over_base_classes() -> None:
    assert field_docstrings(Base) == {"steps": "Steps of the loop, in all.", "rate": "Learning rate."}
    assert field_docstrings(Special)["steps"] == "Steps of this loop."
    assert field_docstrings(Special)["rate"] == "Learning rate."


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("strength nan: not finite"), 2, "wrangan: strength nan: not finite"),
        (WranganError("training diverged"), 1, "wrangan: training diverged"),
        (FileError("a.st", "not a code"), 1, "wrangan: a.st: not a code"),
        (OSError(28, "No space left on device", "out/a.st"), 1, "wrangan: out/a.st: No space left on device"),
        (PermissionError(13, "Permission denied", "x"), 1, "wrangan: x: Permission denied"),
        (KeyboardInterrupt(), 130, "wrangan: interrupted"),
        (MemoryError(), 1, "wrangan: out of memory: give a smaller --batch\n"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
            ),
            1,
            "wrangan: out of memory: give a smaller --batch\n",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("Tried to allocate 20.50 MiB. GPU 0 has …\nmore"),
            1,
            "wrangan: out of memory (tried to allocate another 20.50 MiB): give a smaller --batch",
        ),
        (RuntimeError("MPS backend out of memory"), 1, "wrangan: out of memory: give"),
    ],
)
def test_errors_are_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    result = runner.invoke(app_that(error), ["work", "a.png"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert heard.getvalue().startswith(line)
    assert heard.getvalue().count("\n") == 1


def test_what_the_allocator_really_says_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as refused:
        np.empty(2**60, dtype=np.uint8)
    assert is_out_of_memory(refused.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(typer.Exit(1))


def test_remarks_of_the_engine_are_said_while_a_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    made = typer.Typer(cls=Shell)
    made.command("work")(lambda: logging.getLogger("wrangan").warning("%s: odd", "a.png"))
    made.command("other")(lambda: None)
    assert runner.invoke(made, ["work"]).exit_code == 0
    assert heard.getvalue() == "wrangan: a.png: odd\n"
    assert not logging.getLogger("wrangan").handlers


def test_an_error_about_a_file_can_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(FileError("a.png", "truncated")))
    assert (str(error), error.path, error.cause) == ("a.png: truncated", Path("a.png"), "truncated")


def test_a_bug_is_not_hidden() -> None:
    assert isinstance(
        runner.invoke(app_that(ZeroDivisionError()), ["work", "a"]).exception, ZeroDivisionError
    )


@pytest.mark.parametrize(
    "line", [["work"], ["work", "a", "--steps", "x"], ["work", "a", "--nosuch"], ["nosuch"]]
)
def test_wrong_usage_is_exit_code_2(line: list[str]) -> None:
    assert runner.invoke(app_that(), line).exit_code == 2


def test_settings_that_refuse_themselves_are_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    assert runner.invoke(app_that(), ["work", "a", "--steps", "0"]).exit_code == 2
    assert heard.getvalue() == "wrangan: steps 0 is not positive\n"


def test_long_names_stay_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    name = "a [very] long/" * 30 + "name.png"
    assert runner.invoke(app_that(FileError(name, "broken")), ["work", "a"]).exit_code == 1
    assert heard.getvalue() == f"wrangan: {name}: broken\n"


def test_the_app_shows_its_commands() -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "generate" in result.stdout
    assert __version__.count(".") == 2


@pytest.mark.parametrize(("text", "seeds"), [("0-3,7", [0, 1, 2, 3, 7]), ("5", [5]), ("2-2", [2])])
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "3-1", "5,3-1", "1,,2", "-5"])
def test_bad_seeds(text: str) -> None:
    with pytest.raises(UsageError, match="seeds"):
        parse_seeds(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [("0-20000000", "20000001 numbers, at most"), ("0-9", None), (f"0-{10**30}", "expected 64-bit numbers")],
)
def test_ranges_are_compared_before_they_are_written_out(text: str, line: str | None) -> None:
    tracemalloc.start()
    if line is None:
        assert len(parse_seeds(text)) == 10
    else:
        with pytest.raises(UsageError, match=line):
            parse_seeds(text)
    with pytest.raises(UsageError, match="expected all, or numbers in 0…17"):
        parse_layers("0-20000000", 18)
    with pytest.raises(UsageError, match="at most"):
        parse_layers(",".join(["0-17"] * 200), 18)
    assert parse_layers("0-3,7,7", 18) == (0, 1, 2, 3, 7)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("words", [["--truncation", "nan"], ["--truncation", "-0.5"], ["--epsilon", "inf"]])
def test_numbers_that_mean_nothing_are_wrong_usage(words: list[str]) -> None:
    result = runner.invoke(app, ["generate", *words, "--model", "nosuch"])
    assert result.exit_code == 2
    assert words[0].removeprefix("--") in result.stderr


def test_advice_names_options_that_the_command_has() -> None:
    made = typer.Typer(cls=Shell)
    inner = typer.Typer()
    made.add_typer(inner, name="train")

    @inner.command("plain")
    def plain() -> None:
        raise MemoryError

    @inner.command("batched")
    def batched(batch: int = 1, accumulate: int = 1) -> None:  # noqa: ARG001
        raise MemoryError

    @made.command("seeds")
    def seeds(seeds: str = "") -> None:  # noqa: ARG001
        raise MemoryError

    for words, line in (
        (["train", "plain"], "out of memory"),
        (["train", "batched"], "out of memory: give a smaller --batch or a higher --accumulate"),
        (["seeds"], "out of memory: give fewer --seeds"),
    ):
        assert runner.invoke(made, words).stderr == f"wrangan: {line}\n"


def test_an_error_is_one_line_and_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    Results().failed("two\nlines", Path(":smile:.png"))
    assert runner.invoke(app_that(WranganError("also\ntwo")), ["work", "a"]).exit_code == 1
    assert heard.getvalue() == "wrangan: :smile:.png: two lines\nwrangan: also two\n"


def test_what_a_library_says_is_cut_and_printable() -> None:
    said = cause_of(ValueError("header b'\x1b[2J' differs " + "x" * 1000 + "\nsecond line"))
    assert said.startswith("header b'\\x1b[2J' differs xxx")
    assert (len(said), said[-1]) == (201, "…")
    assert cause_of(FileError("a", "y" * 1000)) == "y" * 1000  # our own lines are as long as we make them


def test_the_version() -> None:
    result = runner.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"wrangan {__version__}\n")
    assert "--version" in runner.invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout
    assert "Invert photographs into" in runner.invoke(app, ["--help"], env={"COLUMNS": "120"}).stdout


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_wait_briefly_unless_told_otherwise(
    given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == (given.get("GOMP_SPINCOUNT") if given else "10000")
