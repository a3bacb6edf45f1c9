"""Machines without a home directory, or with one that cannot be written: the work is done without a cache."""

import logging
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner
from wrangan_kernels import build, caching

from tests.conftest import write_photo
from wrangan_cli.app import app
from wrangan_cli.engine.base.weights import TORCHVISION_VGG, find_weights
from wrangan_cli.engine.data.image_sets import default_cache_dir, load_image_set

pytestmark = pytest.mark.skipif(os.name == "nt", reason="users and rights are POSIX's")


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> None:
    caching.remark_without_cache.cache_clear()


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder that the process works in: no HOME, and a user without a line in /etc/passwd."""
    import pwd

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "WRANGAN_CACHE", build.CACHE_ENVIRONMENT, "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def locked_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home directory that the user may not enter; as the system says so, whoever runs the test."""
    home = tmp_path / "home"
    real = Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        if self.is_relative_to(home):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    for name in ("XDG_CACHE_HOME", "WRANGAN_CACHE", build.CACHE_ENVIRONMENT, "TORCH_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache on a disk that is mounted read-only."""
    folder = tmp_path / "cache"
    folder.mkdir()
    real = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not (Path(path) == folder and mode & os.W_OK) and real(path, mode)
    )
    monkeypatch.setenv("WRANGAN_CACHE", str(folder))
    monkeypatch.delenv(build.CACHE_ENVIRONMENT, raising=False)
    return folder


@pytest.mark.parametrize("machine", ["no_home", "locked_home", "read_only"])
def test_image_sets_are_read_without_a_cache(
    machine: str, request: pytest.FixtureRequest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request.getfixturevalue(machine)
    write_photo(tmp_path / "data" / "a.png")
    write_photo(tmp_path / "data" / "b.png")
    with caplog.at_level(logging.WARNING, "wrangan"):
        first = load_image_set([tmp_path / "data"], 16, default_cache_dir())
        again = load_image_set([tmp_path / "data"], 16, default_cache_dir())
    assert first.pixels.shape == (2, 16, 16, 3)
    assert (first.pixels == again.pixels).all()
    (said,) = [record.getMessage() for record in caplog.records]
    assert "nothing is kept" in said
    assert "WRANGAN_CACHE" in said


def test_no_folder_is_made_of_the_tilde(no_home: Path) -> None:
    assert caching.user_cache() == caching.NOWHERE
    load = default_cache_dir()
    assert load.is_dir()
    assert not list(no_home.iterdir())


@pytest.mark.parametrize("machine", ["no_home", "locked_home", "read_only"])
def test_kernels_say_which_variable_helps(machine: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(machine)
    wanted = build.recipe("cpu")
    assert not wanted.library.is_file()
    with pytest.raises(build.BuildError, match="WRANGAN_CACHE"), build.building(wanted):
        pass


@pytest.mark.parametrize("machine", ["no_home", "locked_home"])
def test_weights_are_looked_for_where_nobody_may_look(machine: str, request: pytest.FixtureRequest) -> None:
    from wrangan_cli.engine.base.errors import WranganError

    request.getfixturevalue(machine)
    with pytest.raises(WranganError, match="were not found"):
        find_weights(TORCHVISION_VGG, "a test")


@pytest.mark.parametrize("machine", ["no_home", "locked_home"])
def test_commands_do_their_work(
    machine: str, request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path
) -> None:
    request.getfixturevalue(machine)
    line = ["generate", "--seeds", "0", "--model", str(tiny_folder), "--out", str(tmp_path / "a.png")]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize("machine", ["no_home", "locked_home"])
def test_what_must_be_kept_is_refused_in_one_line(
    machine: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request.getfixturevalue(machine)
    monkeypatch.setenv("COLUMNS", "500")
    result = CliRunner().invoke(app, ["fetch", "inception"])
    assert result.exit_code == 1
    assert "WRANGAN_CACHE names another folder" in result.stderr
