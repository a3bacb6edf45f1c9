"""Making and loading the kernels on machines with no compiler, a broken one, or a broken library.

Compilers here are scripts, so that every state is tried on every machine and none of these tests
needs a real one. Most states are tried in this process, as if it had loaded nothing yet.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from wrangan_kernels import build, loader

from tests.conftest import random_generator_network
from wrangan_cli.app import app
from wrangan_cli.engine import diagnosis
from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.ops.dispatch import compiled

ROOT = Path(__file__).parents[1]
DRAW = """
import torch
from wrangan_cli.engine.ops.bias_act import bias_act
print(bias_act(torch.ones(1, 1, 2, 2), torch.ones(1)).shape)
"""
# Three processes that have loaded nothing yet.
THREE = """
from tests.forked import forked
from wrangan_kernels import loader
print(forked(3, lambda _: loader.ready("cpu")))
"""


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Machine:
    """A new process on a machine with this cache and this compiler, as far as the loader can tell."""

    def __init__(
        self, patch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture, cache: Path, compiler: Path
    ) -> None:
        self.patch, self.log, self.cache, self.compiler = patch, log, cache, compiler
        patch.setenv("WRANGAN_KERNELS", "auto")
        patch.setenv(build.CACHE_ENVIRONMENT, str(cache))
        patch.setenv("CXX", str(compiler))

    def start(self) -> list[str]:
        """Draw an image, as the reference draws it; returns what was remarked."""
        self.patch.setattr(loader, "_states", {})
        self.patch.setattr(loader, "_loaded", {})
        self.log.clear()
        generator = random_generator_network()
        with torch.no_grad():
            image = generator.synthesis(torch.ones(1, 16))
            with loader.reference():
                assert torch.equal(image, generator.synthesis(torch.ones(1, 16)))
        assert not loader.ready("cpu")
        return [record.getMessage() for record in self.log.records]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, caplog, tmp_path / "cache", tmp_path / "cxx")


def test_off_is_silent_and_makes_nothing(machine: Machine) -> None:
    machine.patch.setenv("WRANGAN_KERNELS", "off")
    script(machine.compiler, "exit 1")
    assert machine.start() == []
    assert not machine.cache.exists()


def test_cuda_is_off_unless_required(machine: Machine) -> None:
    """No GPU has run those kernels. None is asked for here: what is not wanted is not looked for."""
    machine.patch.setattr(build, "recipe", lambda device: pytest.fail(f"looked for {device}"))
    machine.patch.setattr(loader, "_states", {})
    assert not loader.ready("cuda")
    assert "WRANGAN_KERNELS=require" in loader.describe("cuda")
    assert machine.log.records == []
    machine.patch.setenv("WRANGAN_KERNELS", "require")
    machine.patch.setattr(loader, "_states", {})
    with pytest.raises(pytest.fail.Exception, match="looked for cuda"):
        loader.ready("cuda")


def test_a_failing_compiler_is_one_line_once_and_the_reference_runs(machine: Machine, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    noted = f'echo "$@" >> {calls}'
    script(machine.compiler, f'{noted}; echo "x.h:1: fatal error: nothing here" >&2; exit 3')
    making, failed = machine.start()
    assert "making the cpu kernels" in making
    assert "cxx failed with 3: x.h:1: fatal error: nothing here" in failed
    assert loader.COST in failed
    assert machine.start() == []
    assert len(calls.read_text().splitlines()) == 1
    # Another state of the machine: it is tried again.
    script(machine.compiler, f'{noted}; echo "now another error" >&2; exit 4')
    assert "cxx failed with 4: now another error" in machine.start()[-1]
    assert not list(machine.cache.glob(".build-*"))


def test_no_compiler_at_all(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    machine.patch.setenv("PATH", str(tmp_path / "empty"))
    machine.patch.setenv("CXX", "")
    assert "no C++ compiler was found" in machine.start()[-1]
    assert machine.start() == []


def test_required_kernels_that_cannot_be_had_are_an_error(machine: Machine) -> None:
    script(machine.compiler, "exit 1")
    machine.patch.setenv("WRANGAN_KERNELS", "require")
    with pytest.raises(
        WranganError, match=r"^WRANGAN_KERNELS=require, but there are no cpu kernels: cxx failed"
    ):
        machine.start()


def test_a_library_that_does_not_load(machine: Machine) -> None:
    """What a compiler gave, or a full disk left over, is no library."""
    script(machine.compiler, 'while [ "$1" != -o ]; do shift; done; echo "not a library" > "$2"')
    assert "does not load" in machine.start()[-1]
    # The garbage stays where the library would be, and is passed over without a word.
    assert len(list(machine.cache.glob("*.so"))) == 1
    assert machine.start() == []


def test_a_cache_that_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    machine.patch.setenv(build.CACHE_ENVIRONMENT, str(tmp_path / "file" / "cache"))
    script(machine.compiler, "exit 1")
    assert "cannot be written" in machine.start()[-1]


def test_other_types_go_the_reference_way() -> None:
    assert not compiled(torch.zeros(1, dtype=torch.float64))
    assert not compiled(torch.zeros(1, dtype=torch.float16))
    assert not compiled(torch.zeros(1, device="meta"))


def test_the_line_goes_to_stderr(tmp_path: Path) -> None:
    compiler = script(tmp_path / "cxx", "exit 3")
    own = {**os.environ, "WRANGAN_KERNELS": "auto", "CXX": str(compiler), "OMP_NUM_THREADS": "1"}
    own[build.CACHE_ENVIRONMENT] = str(tmp_path / "cache")
    done = subprocess.run(
        [sys.executable, "-c", DRAW], env=own, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "torch.Size([1, 1, 2, 2])"
    assert done.stderr.splitlines()[-1].startswith("no cpu kernels (cxx failed with 3")


def test_processes_that_start_at_once_build_once(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    compiler = script(tmp_path / "cxx", f"echo called >> {calls}; sleep 3; exit 1")
    own = {**os.environ, "WRANGAN_KERNELS": "auto", "WRANGAN_KERNELS_CACHE": str(tmp_path / "cache")}
    own |= {"CXX": str(compiler), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", THREE], env=own, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout == "[False, False, False]\n"
    assert calls.read_text().splitlines() == ["called"]


def test_a_mode_without_meaning_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_KERNELS", "maybe")
    loader.forget()
    try:
        result = CliRunner().invoke(app, ["doctor"])
        assert result.exit_code == 2
    finally:
        monkeypatch.undo()
        loader.forget()


def test_the_key_follows_what_a_library_depends_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = build.recipe("cpu")
    assert build.recipe("cpu").key == wanted.key
    monkeypatch.setattr(build, "_processor", lambda: "another processor")
    assert build.recipe("cpu").key != wanted.key
    monkeypatch.undo()
    source = tmp_path / "a.cpp"
    source.write_text("1")
    keys = {build.Recipe("cpu", (source,), flags, "x").key for flags in (("-O2",), ("-O3",))}
    source.write_text("2")
    keys.add(build.Recipe("cpu", (source,), ("-O3",), "x").key)
    assert len(keys) == 3


def test_cuda_of_the_wrong_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    nvcc = script(home / "bin" / "nvcc", 'echo "Cuda compilation tools, release 9.2, V9.2.1"')
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", "exit 0")))
    monkeypatch.setattr(build.torch.version, "cuda", "13.2")
    source = tmp_path / "a.cu"
    source.write_text("")
    wanted = build.Recipe("cuda", (source,), (), "sm_90")
    with pytest.raises(build.BuildError, match=r"nvcc is of CUDA 9\.2, torch of 13\.2"):
        build.commands(wanted, tmp_path / "x.so")
    nvcc.unlink()
    monkeypatch.setattr(build, "_nvcc", lambda: None)
    with pytest.raises(build.BuildError, match="no nvcc was found"):
        build.commands(wanted, tmp_path / "x.so")


def test_doctor_tells_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_KERNELS", "off")
    loader.forget()
    try:
        report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
        assert report["kernels"]["cpu"] == "off (WRANGAN_KERNELS)"
    finally:
        monkeypatch.undo()
        loader.forget()


def test_doctor_builds_what_the_setting_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(diagnosis, "kernel_devices", lambda: ["cpu", "cuda"])
    monkeypatch.setattr(loader, "make", lambda device: made.append(device) or "library")
    for setting, devices in (("auto", ["cpu"]), ("require", ["cpu", "cuda"])):
        made.clear()
        monkeypatch.setenv("WRANGAN_KERNELS", setting)
        assert list(diagnosis.build_kernels()) == made == devices
    monkeypatch.setenv("WRANGAN_KERNELS", "off")
    assert CliRunner().invoke(app, ["doctor", "--build-kernels"]).exit_code == 2


def test_doctor_says_why_kernels_cannot_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRANGAN_KERNELS_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", str(script(tmp_path / "cxx", "echo 'error: too old' >&2; exit 1")))
    result = CliRunner().invoke(app, ["doctor", "--build-kernels"])
    assert result.exit_code == 1
    assert "cpu kernels: cxx failed with 1: error: too old" in result.output
