"""Animations: pictures written one by one as .gif or .mp4."""

import math
import struct
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from PIL.GifImagePlugin import getdata

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.data.ffmpeg import ffmpeg, film
from wrangan_cli.engine.data.marks import MARK

SUFFIXES = (".gif", ".mp4")
LARGEST_SIDES = {".gif": 2**16 - 1, ".mp4": 2**14}
"""Largest side of a frame in px: the width of GIF's field, and x264's limit."""
_CRF = 5
"""Quality for x264: few images, which people look at one by one, so finer than for clips."""


def save_animation(
    path: Path, frames: Iterable[Image.Image], fps: float = 8.0, and_back: bool = False
) -> None:
    """Write 8-bit RGB pictures of one size as .gif (endless, 256 colours each) or .mp4 (H.264), atomically.

    The file says that it was edited (marks.py).
    Only one frame is in memory at a time; an error while frames are made leaves no file. fps: images per
    second, above 0. and_back: after the last frame play backwards to the second, so that the loop does not
    jump; frames are kept in a file beside `path` for this. In .mp4 an odd side is extended by one px, a copy
    of its neighbour, since the codec requires even sides.

    Raises UsageError for another suffix or a bad fps, WranganError for .mp4 without
    imageio and its ffmpeg, FileError if the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: animations can be written as {', '.join(SUFFIXES)}")
    check_fps(fps)
    shown = _there_and_back(frames, path.parent) if and_back else iter(frames)
    try:
        if path.suffix.lower() == ".mp4":
            check_mp4()
            with film(path, fps, crf=_CRF, comment=MARK) as write:
                for frame in shown:
                    write(np.asarray(frame))
        else:
            with replaced_atomically(path) as temporary, open(temporary, "wb") as stream:
                _write_gif(stream, shown, fps)
    except FileError:
        raise
    except OSError as error:
        raise FileError(path, f"not written ({error.strerror or error})") from error


def check_fps(fps: float) -> None:
    """UsageError if fps is not a sensible number of images per second."""
    if not (math.isfinite(fps) and 0 < fps <= 100):
        raise UsageError(f"fps {fps}: expected a number above 0 and up to 100")


def check_mp4() -> None:
    """WranganError if there is no ffmpeg to write an .mp4 with."""
    try:
        ffmpeg()
    except WranganError as error:
        raise WranganError(f"{error} (.gif works without it)") from error


def _write_gif(stream: IO[bytes], frames: Iterator[Image.Image], fps: float) -> None:
    """Pillow encodes each frame; the file is assembled here, since Pillow keeps all frames until the end.

    Source: the GIF89a specification (CompuServe, 1990), and Netscape's extension for the endless loop.
    """
    for index, frame in enumerate(frames):
        if index == 0:
            # Eight bits per colour, and no global colour table: each frame has one.
            stream.write(b"GIF89a" + struct.pack("<HHBBB", *frame.size, 0x70, 0, 0))
            stream.write(b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
            stream.write(b"!\xfe" + bytes([len(MARK)]) + MARK.encode("ascii") + b"\x00")
        for part in getdata(frame.quantize(256), duration=1000 / fps, include_color_table=True):
            stream.write(part)
    stream.write(b";")


def _there_and_back(frames: Iterable[Image.Image], folder: Path) -> Iterator[Image.Image]:
    with tempfile.TemporaryFile(dir=folder) as kept:
        count = 0
        for frame in frames:
            kept.write(frame.tobytes())
            count += 1
            yield frame
        for index in range(count - 2, 0, -1):
            length = len(frame.mode) * frame.width * frame.height
            kept.seek(index * length)
            yield Image.frombytes(frame.mode, frame.size, kept.read(length))
