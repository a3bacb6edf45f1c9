"""Files appear whole or not at all."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
import torch

from wrangan_cli.engine.errors import FileError
from wrangan_cli.engine.files import replaced_atomically, sha256
from wrangan_cli.engine.tensorfile import read_tensors, write_tensors


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
