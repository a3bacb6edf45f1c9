"""Files appear whole or not at all."""

import contextlib
import errno
import hashlib
import os
import resource
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import save_file
from wrangan_kernels.caching import exclusive

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.base.files import (
    check_can_be_made,
    replaced_atomically,
    replaced_together,
    sha256,
    try_lock,
)
from wrangan_cli.engine.base.tensorfile import read_tensors, write_tensors, write_torch


def test_a_new_file_gets_the_content_and_usual_rights(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with replaced_atomically(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        assert not path.exists()
        temporary.write_text("done")
    assert path.read_text() == "done"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with replaced_atomically(path) as temporary:
            temporary.write_text("half")
            raise error("stop")

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_are_replaced_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text("old")
    rename, order = os.replace, []

    def noted(source: Path, target: Path) -> None:
        # All are written and on the disk when the first one is renamed.
        assert all(p.read_text() == "new" for p in tmp_path.iterdir() if p.name.startswith("."))
        order.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "replace", noted)
    with contextlib.suppress(ZeroDivisionError), replaced_together(paths) as temporaries:
        temporaries[0].write_text("new")
        raise ZeroDivisionError
    assert [path.read_text() for path in paths] == ["old"] * 3
    with replaced_together(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
    assert order == ["a", "b", "c"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_an_exclusive_block_waits_for_the_other(tmp_path: Path) -> None:
    inside, longest = [], []

    def work() -> None:
        with exclusive(tmp_path / "lock"):
            inside.append(1)
            longest.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert longest == [1] * 4


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_nobody_waits_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refused(_lock: FileLock, *_: object, **__: object) -> None:
        raise OSError(code, "no locks")

    monkeypatch.setattr(FileLock, "acquire", refused)
    with exclusive(tmp_path / "lock"):
        assert try_lock(tmp_path / "claimed") is not None


def test_a_lock_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(OSError, match="lock"), exclusive(tmp_path / "lock"):
        pytest.fail("entered")


def test_whether_a_folder_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_be_made(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="Not a directory"):
        check_can_be_made(tmp_path / "file" / "deep")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(FileError, match="Permission denied"):
        check_can_be_made(tmp_path / "new")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_tensors_and_record_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.randn(5).half()}
    write_tensors(tmp_path / "x.st", tensors, {"n": 1, "text": "ε", "list": [1, 2.5]})
    back, record = read_tensors(tmp_path / "x.st")
    assert record == {"n": 1, "text": "ε", "list": [1, 2.5]}
    assert back["b"].dtype == torch.float16
    assert all(torch.equal(tensors[k], back[k]) for k in tensors)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 200, None])
def test_unreadable_tensor_files_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.st"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("record", "tensor", "cause"),
    [
        ("[1, 2]", torch.zeros(2), "not one that wrangan wrote"),
        ("{nonsense", torch.zeros(2), "not a readable safetensors file"),
        ("{}", torch.zeros(2, dtype=torch.complex64), "not real numbers"),
        ("{}", torch.zeros(2, dtype=torch.bool), "not real numbers"),
    ],
)
def test_odd_safetensors_files_are_refused(
    tmp_path: Path, record: str, tensor: torch.Tensor, cause: str
) -> None:
    save_file({"a": tensor}, tmp_path / "x.st", metadata={"wrangan": record})
    with pytest.raises(FileError, match=cause):
        read_tensors(tmp_path / "x.st")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are Linux's")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"photo-\xff\xe9.st")
    write_tensors(path, {"a": torch.ones(2)}, {"n": 1})
    tensors, record = read_tensors(path)
    assert (tensors["a"].tolist(), record) == ([1, 1], {"n": 1})
    path.write_bytes(b"broken")
    with pytest.raises(FileError, match="not a readable safetensors file"):
        read_tensors(path)


def test_a_name_as_long_as_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + ".st")
    write_tensors(path, {"a": torch.zeros(2)}, {})
    assert read_tensors(path)[1] == {}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files of more than 1 MB cannot be written (the system says so, as when a disk is full)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("suffix", [".st", ".pt"])
def test_a_full_disk_is_one_line_and_keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text("old")
    large = {"a": torch.randn(500_000)}
    with pytest.raises(FileError, match=r"not written .*File too large") as caught:
        write_tensors(path, large, {}) if suffix == ".st" else write_torch(path, large)
    assert "\n" not in str(caught.value)
    assert caught.value.path == path
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_a_run_folder_has_one_writer(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from wrangan_cli.engine.training.record import RunRecord

    with RunRecord(tmp_path / "run", {}):
        with pytest.raises(FileError, match="another training is writing there"):
            RunRecord(tmp_path / "run", {"other": 1})
        RunRecord(tmp_path / "other", {}).close()
        assert (tmp_path / "run" / "settings.json").read_text() == "{}\n"
    RunRecord(tmp_path / "run", {}).close()


@pytest.mark.skipif(os.name == "nt", reason="no such locks")
def test_a_claim_ends_with_the_process_that_has_it(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from wrangan_cli.engine.base.files import try_lock
held = try_lock(Path({str(tmp_path / "lock")!r}))
print(held is not None, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"
    assert try_lock(tmp_path / "lock") is None
    process.kill()
    process.communicate()
    assert try_lock(tmp_path / "lock") is not None
