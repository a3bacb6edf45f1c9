"""Training snapshots: whole, few, and unable to run code."""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from wrangan_cli.engine.base.errors import FileError
from wrangan_cli.engine.training.snapshots import list_snapshots, load_snapshot, save_snapshot


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_a_snapshot_comes_back(tmp_path: Path) -> None:
    state = {"images": 12, "x": torch.randn(3), "nested": {"name": "ε", "none": None, "list": [1.5]}}
    path = save_snapshot(tmp_path / "run", 12, state, keep=2)
    assert path.name == "snapshot-0000000012.pt"
    back = load_snapshot(path)
    assert torch.equal(back.pop("x"), state.pop("x"))
    assert back == state


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "snapshot-best.pt").write_text("mine too")
    for images in (5, 100, 20, 1000, 300):
        save_snapshot(tmp_path, images, {}, keep=2)
    assert [p.name for p in list_snapshots(tmp_path)] == ["snapshot-0000000300.pt", "snapshot-0000001000.pt"]
    assert (tmp_path / "notes.txt").exists()
    assert (tmp_path / "snapshot-best.pt").exists()
    assert list_snapshots(tmp_path / "nosuch") == []


def test_a_failed_save_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = save_snapshot(tmp_path, 5, {"x": 1}, keep=1)

    def full(_state: object, stream: BinaryIO) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    for images in (5, 6):
        with pytest.raises(FileError, match=r"not written .No space"):
            save_snapshot(tmp_path, images, {"x": 2}, keep=1)
    assert list(tmp_path.iterdir()) == [old]
    assert load_snapshot(old) == {"x": 1}


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_snapshot_that_runs_code_is_refused(tmp_path: Path, writer: str) -> None:
    path, trace = tmp_path / "snapshot-1.pt", tmp_path / "trace"
    if writer == "torch":
        torch.save({"x": Touch(trace)}, path)
    else:
        path.write_bytes(pickle.dumps({"x": Touch(trace)}, protocol=2))
    with pytest.raises(FileError, match="not a readable training snapshot") as caught:
        load_snapshot(path)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_broken_snapshots_are_named(tmp_path: Path, content: bytes | None) -> None:
    path = save_snapshot(tmp_path, 1, {"x": torch.randn(1000)}, keep=1)
    path.write_bytes(path.read_bytes()[:-500] if content is None else content)
    with pytest.raises(FileError, match=str(path)):
        load_snapshot(path)
