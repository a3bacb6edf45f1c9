"""What all commands share: results on stdout, the rest on stderr, exit codes 0, 1, 2."""

import contextlib
import copy
import dataclasses
import functools
import inspect
import json
import logging
import os
import sys
import time
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer.core import TyperGroup
from typer.models import OptionInfo

from wrangan_cli.commands.option_help import choices_label, option_helps, option_types
from wrangan_cli.commands.streams import flushed, prepare_streams, read_names, write
from wrangan_cli.engine.base.errors import (
    FileError,
    UsageError,
    WranganError,
    escaped,
    is_out_of_memory,
    out_of_memory_line,
)

T = TypeVar("T")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Null = Annotated[bool, typer.Option("-0", "--null", help="Print paths byte for byte, each followed by NUL.")]

OTHER_FILES = frozenset(
    {".mp4", ".mov", ".avi", ".webm", ".svg", ".pdf", ".psd", ".tga", ".ico", ".st", ".pt"}
)
"""Suffixes of files that cannot be written as images."""

_PYDANTIC = "Value error, "
"""Prefix of newer versions of Typer before the reason why a value is invalid."""

CONTEXT = "context"
"""The parameter through which commands see which options were given."""

console = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)


def say(message: str) -> None:
    """Print a message on stderr, if stderr is open."""
    with contextlib.suppress(OSError):
        console.print(message, markup=False)


def complain(error: Exception | str) -> None:
    """Print an error on stderr, in one line."""
    say("wrangan: " + escaped(" ".join(str(error).splitlines())))


class _RemarksHandler(logging.Handler):
    """Prints the engine's log on stderr, one line per record."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


@contextlib.contextmanager
def _remarks_printed() -> Iterator[None]:
    log, handler = logging.getLogger("wrangan"), _RemarksHandler()
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


class Shell(TyperGroup):
    """Turns errors that a user can act on into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare_streams()
        given = sys.stdout
        try:
            return super().main(*args, **kwargs)
        except SystemExit as end:
            # Text still in the buffer (a help page) may be what cannot be written.
            whole = flushed(complain) and (given is None or sys.stdout is not None)
            if not whole and not end.code:
                raise SystemExit(1) from None
            raise
        except OSError as error:  # of a help page; `invoke` handles those of the commands
            sys.stdout = None  # type: ignore[assignment]
            complain(f"standard output: {error.strerror or error}")
            raise SystemExit(1) from None

    def invoke(self, ctx: Any) -> Any:
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        try:
            with _remarks_printed():
                return super().invoke(ctx)
        except typer.BadParameter as error:  # values that Typer checks
            complain(error.format_message().replace(_PYDANTIC, ""))
            ctx.exit(2)
        except UsageError as error:
            complain(error)
            ctx.exit(2)
        except WranganError as error:
            complain(error)
            ctx.exit(1)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            complain(out_of_memory_line(error, _options_of(self, words)))
            ctx.exit(1)
        except BrokenPipeError:
            # The reader of our output has gone (`| head`): nobody would see a message.
            sys.stdout = None  # type: ignore[assignment]
            ctx.exit(1)
        except OSError as error:
            where = f"{escaped(error.filename)}: " if error.filename else ""
            complain(f"{where}{error.strerror or error}")
            ctx.exit(1)
        except KeyboardInterrupt:
            say("wrangan: interrupted; finished work is kept: run the command again to continue")
            ctx.exit(130)


def _options_of(command: Any, words: Sequence[str]) -> set[str]:
    """The options of the command that `words` name."""
    for word in words:
        commands = getattr(command, "commands", {})
        if word not in commands:
            break
        command = commands[word]
    return {name for parameter in command.params for name in parameter.opts}


class Results:
    """Prints what a command has made, and counts what has failed.

    By default: one path per line, in which a line end is written as `\\n`. With `as_json`: one object per
    line. With `null`: the bytes of the path and a NUL byte.
    """

    def __init__(self, as_json: bool = False, null: bool = False) -> None:
        if as_json and null:
            raise UsageError("--json and --null cannot be combined: give one of them")
        self.as_json, self.null = as_json, null
        self.failures = 0

    def wrote(self, path: Path, **record: Any) -> None:
        """Report that a file was written (or existed already)."""
        if self.null:
            write(os.fsencode(path) + b"\0", complain)
            return
        plain = str(path).replace("\n", "\\n").replace("\r", "\\r")
        self._print(json.dumps({"path": str(path), **record}) if self.as_json else plain)

    def record(self, text: str, **record: Any) -> None:
        """Report a result that is not a file."""
        self._print(json.dumps(record) if self.as_json else text)

    def failed(self, error: Exception | str, path: Path | None = None) -> None:
        """Report that one input failed, in a line that names the file; the others are still processed."""
        self.failures += 1
        if path is not None and not (isinstance(error, FileError) and error.path == path):
            complain(f"{escaped(path)}: {_cause(error)}")
        else:
            complain(_cause(error))

    def finish(self) -> None:
        """Exit with 1 if anything failed; under torchrun, if anything failed in any process.

        (All exit together, since torchrun stops the others as soon as one exits with an error.)
        """
        from wrangan_cli.engine.base.distributed import any_rank

        if any_rank(self.failures > 0):
            raise typer.Exit(1)

    def _print(self, line: str) -> None:
        write(f"{line}\n", complain)


def _cause(error: Exception | str) -> str:
    if isinstance(error, OSError) and not isinstance(error, WranganError):
        return error.strerror or str(error)
    return str(error)


def by_main(work: Callable[[], T]) -> T:
    """Do `work` in the main process; under torchrun every process gets the result.

    An error is raised, and so reported, in the main process; the others exit with its code.
    """
    from wrangan_cli.engine.base.distributed import broadcast, is_main

    result: Any = None
    error: WranganError | OSError | None = None
    if is_main():
        try:
            result = work()
        except (WranganError, OSError) as caught:
            error = caught
    result, code = broadcast((result, 0 if error is None else 2 if isinstance(error, UsageError) else 1))
    if error is not None:
        raise error
    if code:
        raise typer.Exit(code)
    return result


def progress(description: str, total: int | None) -> Progress:
    """A progress bar on stderr with rate and estimate; hidden if stderr is not a terminal and, under
    torchrun, in all processes but the first."""
    from wrangan_cli.engine.base.distributed import is_main

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or not is_main(),
    )
    bar.add_task(description, total=total, rate="")
    return bar


@contextlib.contextmanager
def progress_with_rate(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """`progress`; yields a function that takes the count done so far.

    The count of the first call is taken as done earlier, so that the rate is that of this run.
    """
    started, before = time.perf_counter(), None
    with progress(description, total) as bar:

        def advance(done: int) -> None:
            nonlocal started, before
            now = time.perf_counter()
            if before is None:
                started, before = now, done
            rate = (done - before) / max(now - started, 1e-9)
            shown_rate = f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
            bar.update(bar.task_ids[0], completed=done, rate=shown_rate)

        yield advance


def inputs(arguments: Iterable[Path] | None) -> Iterator[Path]:
    """Paths given as arguments or, without any (or with `-`), those that `read_names` reads from stdin."""
    given = list(arguments or [])
    if given and given != [Path("-")]:
        yield from given
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("no input: give files or a folder, or paths on stdin")
    yield from map(Path, read_names())


def one_image(out: Path) -> bool:
    """Whether --out is an image file, and not a folder; UsageError for a format that cannot be written.

    An unknown suffix is part of a folder's name: `run-0.5`.
    """
    from wrangan_cli.engine.data.image_writing import WRITTEN_FORMATS, written_format
    from wrangan_cli.engine.data.photo_files import IMAGE_SUFFIXES, UNREAD_SUFFIXES

    suffix = out.suffix.lower()
    others = IMAGE_SUFFIXES | UNREAD_SUFFIXES | OTHER_FILES
    if out.is_dir() or suffix not in WRITTEN_FORMATS.keys() | others:
        return False
    written_format(out)
    return True


def settings_options(
    settings: type | Mapping[str, type],
    parameter: str = "settings",
    panels: Mapping[str, Sequence[str]] | None = None,
    make: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: the fields of a frozen dataclass become options of the command.

    Names, types, defaults and help (the docstring under each field) come from the
    dataclass; the command gets one instance of it as `parameter`. A ValueError from the
    dataclass's checks becomes a usage error. panels: heading of the help → names of options, including those
    that the command itself declares; options that are not listed come under the first heading.

    settings may also be several dataclasses by name (such as those of the inversion methods): the fields of
    all of them become options, and the help says which names have an option if not all do. make: builds the
    command's instance from the options given on the command line; all others keep the defaults of its class.
    """
    kinds = settings if isinstance(settings, Mapping) else {parameter: settings}
    fields: dict[str, dataclasses.Field[Any]] = {}
    for kind in kinds.values():
        for field in dataclasses.fields(kind):
            if field.init:
                fields.setdefault(field.name, field)
    panel_of = {name: panel for panel, names in (panels or {}).items() for name in names}
    order = list(panel_of)
    helps, types = option_helps(kinds, panel_of), option_types(kinds)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in fields}
            try:
                if make is not None:
                    given = _on_command_line(kwargs.pop(CONTEXT), fields)
                    values = {name: value for name, value in values.items() if name in given}
                instance = (make or kinds[parameter])(**values)
            except ValueError as error:
                raise UsageError(str(error)) from error
            return command(**kwargs, **{parameter: instance})

        signature = inspect.signature(command)
        # Typer passes the context to the parameter of this type.
        context = inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        others = [p for p in signature.parameters.values() if p.name != parameter]
        made = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=typer.Option(
                    field.default,
                    help=helps.get(name, ""),
                    metavar=choices_label(types[name]),
                    rich_help_panel=panel_of.get(name),
                ),
                annotation=types[name],
            )
            for name, field in fields.items()
        ]
        others = [
            in_panel(p, panel_of.get(p.name)).replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in others
        ]
        # The help shows headings in the order of their first options.
        needed = [] if make is None else [context]
        both = sorted([*needed, *others, *made], key=lambda p: order.index(p.name) if p.name in order else -1)
        wrapper.__signature__ = signature.replace(parameters=both)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in both}
        return wrapper

    return decorate


def _on_command_line(context: typer.Context, names: Iterable[str]) -> set[str]:
    """Which of the running command's parameters `names` were given on the command line."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def in_panels(panels: Mapping[str, Sequence[str]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: list the command's options under headings of its help. panels: heading → parameter names."""
    panel_of = {name: panel for panel, names in panels.items() for name in names}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        moved = [in_panel(p, panel_of.get(p.name)) for p in signature.parameters.values()]
        command.__signature__ = signature.replace(parameters=moved)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in moved}
        return command

    return decorate


def in_panel(parameter: inspect.Parameter, panel: str | None) -> inspect.Parameter:
    """A command's parameter, annotated with its option, moved under a heading of the help."""
    annotation = parameter.annotation
    if panel is None or typing.get_origin(annotation) is not Annotated:
        return parameter
    kind, *options = typing.get_args(annotation)
    moved = []
    for option in options:
        if isinstance(option, OptionInfo):
            # Copied, since commands share options such as --json.
            option = copy.copy(option)
            option.rich_help_panel = panel
        moved.append(option)
    return parameter.replace(annotation=Annotated[kind, *moved])
