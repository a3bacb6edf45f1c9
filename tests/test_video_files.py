"""Clips in and out: rates, turned and odd ones, sound, and what is no clip."""

import re
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("imageio_ffmpeg", reason="no imageio-ffmpeg")

from tests.clips import frames_of, picture, sound_packets, steady, with_tone, write_clip
from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.ffmpeg import add_sound, ffmpeg, film, probe, read_frames
from wrangan_cli.engine.data.image_kinds import is_video, why_not_read


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    pictures = steady(9)
    clip = write_clip(tmp_path / "a.mp4", pictures)
    facts = probe(clip)
    assert (facts.width, facts.height, facts.fps, facts.sound) == (96, 80, 25, False)
    found = frames_of(clip).astype(float)
    assert len(found) == 9
    for number, frame in enumerate(found):
        apart = [np.abs(frame - np.asarray(other)).mean() for other in pictures]
        assert int(np.argmin(apart)) == number
        assert apart[number] < 4


def test_a_span_of_frames(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", steady(9))
    whole = frames_of(clip)
    some = list(read_frames(clip, probe(clip), 3, 5))
    assert [number for number, _ in some] == [3, 4, 5]
    assert all(np.array_equal(pixels, whole[number]) for number, pixels in some)


@pytest.mark.parametrize("fps", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(25, 2), Fraction(60)])
def test_rates_are_kept_exactly(tmp_path: Path, fps: Fraction) -> None:
    with film(tmp_path / "a.mp4", fps) as write:
        for made in steady(30):
            write(np.asarray(made))
    assert probe(tmp_path / "a.mp4").fps == fps
    assert len(frames_of(tmp_path / "a.mp4")) == 30


@pytest.mark.parametrize("matrix", ["bt709", "smpte170m"])
def test_colours_survive_under_either_matrix(tmp_path: Path, matrix: str) -> None:
    made = np.full((48, 64, 3), (200, 60, 90), np.uint8)
    with film(tmp_path / "a.mp4", 25, matrix) as write:
        write(made)
    facts = probe(tmp_path / "a.mp4")
    assert (facts.matrix, facts.tagged) == (matrix, True)
    assert np.abs(frames_of(tmp_path / "a.mp4")[0].astype(int) - made).max() <= 3


def test_a_turned_clip_is_read_upright(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", steady(3))
    turned = tmp_path / "turned.mp4"
    command = [ffmpeg(), "-v", "error", "-display_rotation", "90", "-i", str(clip), "-c", "copy", str(turned)]
    subprocess.run(command, check=True)
    assert (probe(turned).width, probe(turned).height) == (80, 96)
    assert np.array_equal(frames_of(turned), np.rot90(frames_of(clip), axes=(1, 2)))


def test_odd_sides_are_made_even(tmp_path: Path) -> None:
    made = picture((40, 36), size=(95, 79))
    write_clip(tmp_path / "a.mp4", [made] * 2)
    found = frames_of(tmp_path / "a.mp4").astype(float)
    assert found.shape == (2, 80, 96, 3)
    assert np.abs(found[0, :79, :95] - np.asarray(made)).mean() < 4


def test_sound_is_copied(tmp_path: Path) -> None:
    silent = write_clip(tmp_path / "a.mp4", steady(12))
    clip = with_tone(silent, tmp_path / "tone.mp4")
    assert probe(clip).sound
    add_sound(silent, clip, tmp_path / "out.mp4")
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(clip)
    assert np.array_equal(frames_of(tmp_path / "out.mp4"), frames_of(silent))
    add_sound(silent, silent, tmp_path / "none.mp4")
    assert not probe(tmp_path / "none.mp4").sound


def test_sound_that_mp4_does_not_hold_is_encoded_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    silent = write_clip(tmp_path / "a.mp4", steady(12))
    clip = with_tone(silent, tmp_path / "tone.mkv", "wmav2")
    add_sound(silent, clip, tmp_path / "out.mp4")
    assert probe(tmp_path / "out.mp4").sound
    assert "re-encoding it as AAC" in caplog.text


@pytest.mark.parametrize(
    ("name", "data", "line"),
    [
        ("a.mp4", b"", "empty file"),
        ("a.mp4", b"text " * 400, "not a video"),
        ("list.m3u8", b"#EXTM3U\nhttp://localhost/a.ts\n", "not a video"),
        ("a.mp4", b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(900), "broken video"),
        ("a.webm", b"\x1a\x45\xdf\xa3" + bytes(900), "broken video"),
    ],
)
def test_what_is_no_clip(tmp_path: Path, name: str, data: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(FileError, match=line):
        probe(tmp_path / name)


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    tone = ["-f", "lavfi", "-i", "sine=duration=0.2", "-c:a", "aac", str(tmp_path / "tone.mp4")]
    subprocess.run([ffmpeg(), "-v", "error", *tone], check=True)
    with pytest.raises(FileError, match="without a picture"):
        probe(tmp_path / "tone.mp4")


def test_a_truncated_clip_is_named(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.mp4", steady(30))
    (tmp_path / "b.mp4").write_bytes(whole.read_bytes()[:900])
    with pytest.raises(FileError, match=r"b\.mp4"):
        list(read_frames(tmp_path / "b.mp4", probe(tmp_path / "b.mp4")))


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Image.Image]:
        yield picture(None)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "a.mp4", interrupted())
    with pytest.raises(FileError, match="no frames"):
        write_clip(tmp_path / "a.mp4", [])
    assert list(tmp_path.iterdir()) == []


def test_without_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "a.mp4", steady(2))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(WranganError, match=re.escape(install_line("video"))):
        probe(clip)


def test_without_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\necho \"Unknown encoder 'libx264'\" >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("wrangan_cli.engine.data.ffmpeg.ffmpeg", lambda: str(program))
    with pytest.raises(FileError, match=r"no H\.264 encoder"):
        write_clip(tmp_path / "a.mp4", steady(40))
    assert not (tmp_path / "a.mp4").exists()


def test_kinds_of_videos() -> None:
    assert is_video(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(40))
    assert is_video(b"\0\0\0\x14ftypqt  \0\0\0\0qt  " + bytes(40))
    assert is_video(b"RIFF\0\0\0\0AVI LIST")
    assert is_video((b"\x47" + bytes(187)) * 5)
    assert is_video((bytes(4) + b"\x47" + bytes(187)) * 5)
    assert not is_video(b"G is a letter, and no packet " * 40)
    assert not is_video(b"RIFF\0\0\0\0WEBPVP8 ")
    assert not is_video(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40))
    assert "wrangan video" in why_not_read(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(40))
