"""Standard streams that cannot take the text, or that nobody reads: no traceback, and the work is done."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.code_files import make_code
from tests.test_editing import SMILE
from wrangan_cli.app import app
from wrangan_cli.commands import shell
from wrangan_cli.commands.shell import Results
from wrangan_cli.engine.base.errors import UsageError
from wrangan_cli.engine.editing.directions import directions_file, save_directions
from wrangan_cli.engine.models.codes import save_code
from wrangan_cli.engine.models.folder import Model

COMMANDS = ("invert", "generate", "edit", "interpolate", "evaluate", "align", "convert-checkpoint", "fetch")


class Stream(io.TextIOWrapper):
    """A standard output of some encoding, kept in memory."""

    def __init__(self, encoding: str, raw: Any = None) -> None:
        self.held = raw or io.BytesIO()
        super().__init__(self.held, encoding=encoding, write_through=True)


def run(line: list[str], stdout: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a command with that standard output."""
    monkeypatch.setattr(sys, "stdout", stdout)
    with pytest.raises(SystemExit) as ended:
        app(line, prog_name="wrangan")
    return int(ended.value.code or 0)


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "utf-8"])
def test_help_pages_in_every_code_page(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for command in COMMANDS:
        stdout = Stream(encoding)
        assert run([command, "--help"], stdout, monkeypatch) == 0
        text = stdout.held.getvalue().decode(encoding)
        assert "Usage" in text
        assert "--help" in text


def test_names_that_the_code_page_lacks_are_escaped_and_the_batch_goes_on(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_directions(directions_file(tiny_model), tiny_model, [SMILE])
    names = ["a", "łódź", "ä", "日本", "z"]
    for name in names:
        save_code(tmp_path / "codes" / f"{name}.st", make_code(tiny_model))
    stdout = Stream("cp1252")
    line = ["edit", str(tmp_path / "codes"), "--model", str(tiny_model.path), "--out", str(tmp_path / "out")]
    line += ["--direction", "smile", "--strength", "1"]
    assert run(line, stdout, monkeypatch) == 0
    assert len(list((tmp_path / "out").iterdir())) == 5
    said = stdout.held.getvalue().decode("cp1252")
    assert "\\u0142\xf3d\\u017a-smile+1.png\n" in said
    assert "\xe4-smile+1.png\n" in said


def test_a_line_end_in_a_name(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    path = Path("two\nlines\r.st")
    Results().wrote(path)
    Results(as_json=True).wrote(path)
    Results(null=True).wrote(path)
    plain, machine, exact = capsysbinary.readouterr().out.split(b"\n", 2)
    assert plain == b"two\\nlines\\r.st"
    assert json.loads(machine) == {"path": "two\nlines\r.st"}
    assert exact == b"two\nlines\r.st\0"
    with pytest.raises(UsageError, match="--json and --null"):
        Results(as_json=True, null=True)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_paths_with_nul_are_bytes(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    Results(null=True).wrote(Path(os.fsdecode(b"caf\xe9.st")))
    assert capsysbinary.readouterr().out == b"caf\xe9.st\0"


class Broken(io.RawIOBase):
    """Takes some bytes, then raises."""

    def __init__(self, error: OSError, room: int) -> None:
        self.error, self.room, self.taken = error, room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if len(self.taken) + len(data) > self.room:
            raise self.error
        self.taken += bytes(data)
        return len(data)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (BrokenPipeError(32, "Broken pipe"), []),
        (OSError(28, "No space left on device"), ["wrangan: standard output: No space left on device"]),
    ],
)
def test_an_output_that_takes_no_more_stops_no_work(
    error: OSError,
    lines: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    raw = Broken(error, room=len(str(tmp_path / "out" / "seed-0.png")) + 3)
    line = ["generate", "--seeds", "0-4", "--model", str(tiny_folder), "--out", str(tmp_path / "out")]
    assert run(line, Stream("utf-8", raw), monkeypatch) == 1
    assert raw.taken.endswith(b"seed-0.png\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"seed-{i}.png" for i in range(5)]
    assert [said.partition(";")[0] for said in heard.getvalue().splitlines()] == lines


@pytest.mark.parametrize("command", [["--help"], ["edit", "--help"]])
def test_a_help_page_that_cannot_be_written(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    heard = io.StringIO()
    monkeypatch.setattr(shell.console, "_file", heard)
    raw = Broken(OSError(28, "No space left on device"), room=0)
    assert run(command, Stream("utf-8", raw), monkeypatch) == 1
    assert heard.getvalue().count("\n") == 1
    assert "No space left on device" in heard.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="numbers of streams are POSIX's")
def test_a_closed_output_and_its_number(tmp_path: Path) -> None:
    """The first file opened does not become standard output, and results that go nowhere do no harm."""
    code = f"""
import os
os.close(1); os.close(2)
import sys; sys.stdout = sys.stderr = None
import typer
from wrangan_cli.commands.shell import Results, Shell, say
app = typer.Typer(cls=Shell)
@app.command()
def work() -> None:
    with open({str(tmp_path / "made")!r}, "w") as stream:
        os.write(1, b"stray")
        say("a remark")
        Results().record("a result")
        stream.write(str(stream.fileno() > 2))
app.command("other")(lambda: None)
app(["work"])
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == 0
    assert (tmp_path / "made").read_text() == "True"


@pytest.mark.parametrize(
    "given",
    [
        b"a.png\nb c.png\n",
        b"a.png\r\nb c.png\r\n",
        b"\xef\xbb\xbfa.png\r\nb c.png",
        b"\xff\xfe" + "a.png\r\nb c.png\r\n".encode("utf-16-le"),
        b"\xfe\xff" + "a.png\nb c.png\n".encode("utf-16-be"),
        b"a.png\0b c.png\0",
        b"a.png\n\n  \nb c.png\n",
    ],
)
def test_lists_of_every_make(given: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    assert list(shell.inputs(None)) == [Path("a.png"), Path("b c.png")]


def test_names_in_a_list_with_nul_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    given = b"two\nlines.png\0 b.png\r\0"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), encoding="utf-8"))
    assert list(map(str, shell.inputs(None))) == ["two\nlines.png", " b.png\r"]


def test_the_numbers_go_into_a_csv_whatever_the_locale(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import locale

    monkeypatch.setattr(locale, "getencoding", lambda: "ascii", raising=False)
    save_code(tmp_path / "codes" / "łódź.st", make_code(tiny_model))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "photos" / "łódź.png")
    line = ["evaluate", "--codes", str(tmp_path / "codes"), "--photos", str(tmp_path / "photos")]
    line += ["--metric", "mse", "--csv", str(tmp_path / "a.csv"), "--model", str(tiny_model.path)]
    assert CliRunner().invoke(app, line).exit_code == 0
    assert "łódź.png" in (tmp_path / "a.csv").read_text(encoding="utf-8")
