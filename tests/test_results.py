"""What commands write and read: results on stdout, failures on stderr, paths on stdin."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from wrangan_cli.commands import shell
from wrangan_cli.commands.shell import Results
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError


def test_a_closed_pipe_ends_quietly() -> None:
    code = """
import typer
from wrangan_cli.commands.shell import Results, Shell
app = typer.Typer(cls=Shell)
@app.command()
def count() -> None:
    for i in range(100_000):
        Results().record(str(i))
app.command("other")(lambda: None)
app()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, "count"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1
    process.stderr.close()


def test_results_as_lines_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    plain, machine = Results(), Results(as_json=True)
    for results in (plain, machine):
        results.wrote(Path("out/ä b.png"), seed=3)
        results.record("mse 0.5", metric="mse", value=0.5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["out/ä b.png", "mse 0.5"]
    assert [json.loads(line) for line in lines[2:]] == [
        {"path": "out/ä b.png", "seed": 3},
        {"metric": "mse", "value": 0.5},
    ]


def test_a_result_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that share a standard output, unbuffered as torchrun starts them, break no lines."""
    written: list[bytes] = []

    class Pipe(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            written.append(bytes(data))
            return len(data)

    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(Pipe(), write_through=True))
    Results().wrote(Path("a.st"))
    Results(as_json=True).wrote(Path("b.st"))
    assert written == [b"a.st\n", b'{"path": "b.st"}\n']


def test_failures_name_the_file_once_and_end_with_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    results = Results()
    results.finish()
    results.failed(FileError("a.png", "truncated"), Path("a.png"))
    results.failed(OSError(13, "Permission denied", "b.png"), Path("b.png"))
    results.failed(WranganError("no face found"), Path("c.png"))
    results.failed("something else")
    assert heard.getvalue().splitlines() == [
        "wrangan: a.png: truncated",
        "wrangan: b.png: Permission denied",
        "wrangan: c.png: no face found",
        "wrangan: something else",
    ]
    assert capsys.readouterr().out == ""
    with pytest.raises(typer.Exit) as caught:
        results.finish()
    assert caught.value.exit_code == 1


def test_inputs_from_arguments_or_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(shell.inputs([Path("a"), Path("b")])) == [Path("a"), Path("b")]
    for arguments in (None, [], [Path("-")]):
        monkeypatch.setattr("sys.stdin", io.StringIO("x.png\n\n y z.png\n"))
        assert list(shell.inputs(arguments)) == [Path("x.png"), Path(" y z.png")]
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", terminal)
    with pytest.raises(UsageError, match="no input"):
        list(shell.inputs(None))


def test_a_name_cannot_break_the_line_or_speak_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    path = Path("a\nb\x1b[2J\u2028ε.png")
    Results().failed("gone", path)
    Results().failed(FileError(path, "gone"), path)
    Results().failed(FileNotFoundError(2, "gone", str(path)), path)
    assert heard.getvalue() == 3 * "wrangan: a\\nb\\x1b[2J\\u2028ε.png: gone\n"


def test_names_that_are_no_text_go_out_as_they_came_in() -> None:
    code = """
import typer
from wrangan_cli.commands.shell import Results, Shell, inputs
app = typer.Typer(cls=Shell)
@app.command()
def echo() -> None:
    for path in inputs(None):
        Results().wrote(path)
app.command("other")(lambda: None)
app()
"""
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", "-c", code, "echo"],
        input=b"caf\xe9.png\n",
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout == b"caf\xe9.png\n", done.stderr


def test_one_image_or_a_folder(tmp_path: Path) -> None:
    assert shell.one_image(tmp_path / "a.png")
    assert not shell.one_image(tmp_path / "new")
    (tmp_path / "old.d").mkdir()
    assert not shell.one_image(tmp_path / "old.d")
    for name in ("run-0.5", "v1.2.3", "with.dots", "codes.d"):
        assert not shell.one_image(tmp_path / name)
    for name in ("a.tiff", "a.heic", "a.mp4", "a.GIF"):
        with pytest.raises(UsageError, match="images can be written as"):
            shell.one_image(tmp_path / name)
