"""Moving pictures, written as their frames come."""

import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wrangan_cli.engine.base.errors import FileError, UsageError
from wrangan_cli.engine.editing.animation import save_animation


def pictures(count: int, size: tuple[int, int] = (16, 16)) -> list[Image.Image]:
    """Grey gradients, each of its own brightness: few colours, so that .gif keeps them all."""
    ramp = np.arange(size[0], dtype=np.uint8)[None, :, None].repeat(size[1], 0).repeat(3, 2)
    return [Image.fromarray(ramp + 20 * index) for index in range(count)]


def frames_of(path: Path) -> list[np.ndarray]:
    with Image.open(path) as film:
        frames = []
        for index in range(film.n_frames):
            film.seek(index)
            frames.append(np.asarray(film.convert("RGB")))
        return frames


def test_gif_keeps_frames_pace_and_loops(tmp_path: Path) -> None:
    given = [*pictures(3), pictures(3)[2]]  # two equal frames are two
    save_animation(tmp_path / "x.gif", given, fps=4)
    for frame, picture in zip(frames_of(tmp_path / "x.gif"), given, strict=True):
        assert np.array_equal(frame, np.asarray(picture))
    with Image.open(tmp_path / "x.gif") as film:
        assert film.info["duration"] == 250
        assert film.info["loop"] == 0
        assert film.size == (16, 16)


def test_gif_of_many_colours_stays_close(tmp_path: Path) -> None:
    across = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack([across[None].repeat(64, 0), across[:, None].repeat(64, 1), np.full((64, 64), 99)], 2)
    save_animation(tmp_path / "x.gif", [Image.fromarray(pixels.astype(np.uint8))] * 2)
    for frame in frames_of(tmp_path / "x.gif"):
        assert np.abs(frame.astype(int) - pixels).mean() < 8


@pytest.mark.parametrize(("count", "expected"), [(1, [0]), (2, [0, 1]), (4, [0, 1, 2, 3, 2, 1])])
def test_there_and_back(tmp_path: Path, count: int, expected: list[int]) -> None:
    given = pictures(count)
    save_animation(tmp_path / "x.gif", given, and_back=True)
    for frame, index in zip(frames_of(tmp_path / "x.gif"), expected, strict=True):
        assert np.array_equal(frame, np.asarray(given[index]))
    assert [path.name for path in tmp_path.iterdir()] == ["x.gif"]


@pytest.mark.parametrize("and_back", [False, True])
@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_only_a_frame_or_two_are_held(tmp_path: Path, suffix: str, and_back: bool) -> None:
    if suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg")
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def frames() -> Iterator[Image.Image]:
        nonlocal most
        for index in range(20):
            frame = Image.new("RGB", (16, 16), (index, 0, 0))
            alive.append(weakref.ref(frame))
            most = max(most, sum(ref() is not None for ref in alive))
            yield frame
            del frame

    save_animation(tmp_path / f"x{suffix}", frames(), and_back=and_back)
    assert len(alive) == 20
    assert most <= 2


def test_mp4_with_odd_sides(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    save_animation(tmp_path / "x.mp4", pictures(5, (33, 21)), fps=10, and_back=True)
    with imageio.get_reader(tmp_path / "x.mp4") as film:
        assert film.get_meta_data()["size"] == (34, 22)
        frames = [frame.astype(int) for frame in film]
    assert len(frames) == 8
    for index, brightness in ((0, 16), (4, 96), (7, 36)):
        assert abs(frames[index].mean() - brightness) < 4


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_nothing_is_left_of_a_film_that_breaks_off(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4":
        pytest.importorskip("imageio_ffmpeg")

    def frames() -> Iterator[Image.Image]:
        yield Image.new("RGB", (16, 16))
        raise FileError(tmp_path / "a.st", "gone")

    (tmp_path / f"x{suffix}").write_text("kept")
    with pytest.raises(FileError, match=r"a\.st: gone"):
        save_animation(tmp_path / f"x{suffix}", frames(), and_back=True)
    assert [path.name for path in tmp_path.iterdir()] == [f"x{suffix}"]
    assert (tmp_path / f"x{suffix}").read_text() == "kept"


def test_animation_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"x\.gif: not written"):
        save_animation(tmp_path / "file" / "x.gif", pictures(2))
    with pytest.raises(UsageError, match="animations can be written"):
        save_animation(tmp_path / "x.avi", pictures(2))
    with pytest.raises(UsageError, match="fps 0"):
        save_animation(tmp_path / "x.gif", pictures(2), fps=0)
