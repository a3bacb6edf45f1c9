"""Clips in and out, frame by frame, by the ffmpeg that comes with imageio-ffmpeg.

Frames are uint8 arrays (H, W, 3), RGB, upright. Clips have a constant frame rate here: if a file's rate
varies, ffmpeg repeats or drops frames.
"""

import contextlib
import logging
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.base.files import replaced_atomically
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.data.image_kinds import VIDEO_HEAD, is_video

logger = logging.getLogger("wrangan")

Frame = NDArray[np.uint8]

HD_HEIGHT = 720
"""Height in px from which players interpret untagged colours as BT.709; below, as BT.601."""
CRF = 16
"""x264's quality: 0 is lossless, 23 the default; 6 less about doubles the file size."""
LEAST_SIDE = 16
_NTSC = {round(float(rate), 2): rate for rate in (Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120))}
"""Frame rates that ffmpeg prints rounded to two digits."""
_ONLY_FILES = ["-protocol_whitelist", "file"]
"""Options that keep the content of a clip from making ffmpeg open anything on the network."""


@dataclass(frozen=True)
class ClipFacts:
    """The properties of a clip."""

    width: int
    """Width in px, upright, as displayed."""
    height: int
    fps: Fraction
    """Frames per second."""
    matrix: str
    """Conversion of its YCbCr to RGB: bt709 or smpte170m (BT.601)."""
    tagged: bool
    """Whether the clip states it; otherwise it follows from the height, as in players."""
    sound: bool
    """Whether there is a sound track."""


def ffmpeg() -> str:
    """Path of the program; a WranganError that says how to install it if it is missing."""
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise WranganError(f".mp4 needs imageio with ffmpeg: {install_line('video')}") from error


def probe(path: Path) -> ClipFacts:
    """The properties of the clip at `path`, without reading its frames.

    Raises FileError: missing, empty, not a video, without a picture or a frame rate; WranganError
    without ffmpeg.
    """
    ffmpeg()
    if not path.exists():
        raise FileError(path, "no such file")
    if not path.is_file():
        raise FileError(path, "a folder, not a video" if path.is_dir() else "not a file")
    with open(path, "rb") as stream:
        head = stream.read(VIDEO_HEAD)
    if not head:
        raise FileError(path, "empty file (0 bytes)")
    if not is_video(head):
        raise FileError(path, "not a video of a known format")
    try:
        with closing(_reader(path, [])) as frames:
            meta = next(frames)
    # The package's parser fails in many ways on unexpected headers.
    except (OSError, RuntimeError, IndexError, KeyError, ValueError, AttributeError, StopIteration) as error:
        raise FileError(path, "broken video, or one without a picture") from error
    fps = Fraction(meta.get("fps") or 0).limit_denominator(1000)
    fps = _NTSC.get(round(float(fps), 2), fps)
    if not 0 < fps <= 1000:
        raise FileError(path, "no frame rate")
    width, height = meta["size"]
    if min(width, height) < LEAST_SIDE:
        raise FileError(path, f"too small: {width} × {height} px, expected a side of at least {LEAST_SIDE}")
    pixels = str(meta.get("pix_fmt", ""))
    tag = next((name for name in ("bt2020", "bt709", "smpte170m", "bt470bg") if name in pixels), None)
    if tag == "bt2020":
        logger.warning("%s: wide-gamut colours (BT.2020), treated as ordinary ones", path)
    matrix = {"smpte170m": "smpte170m", "bt470bg": "smpte170m", "bt709": "bt709"}.get(
        tag or "", "bt709" if height >= HD_HEIGHT else "smpte170m"
    )
    return ClipFacts(width, height, fps, matrix, tag is not None, "audio_codec" in meta)


def read_frames(
    path: Path, facts: ClipFacts, first: int = 0, last: int | None = None
) -> Iterator[tuple[int, Frame]]:
    """The frames `first` … `last` (both included; None: to the end) with their numbers, from 0.

    One frame is in memory at a time. FileError if there are no frames, or the file ends within a frame.
    """
    pick = ["-map", "0:v:0", "-r", str(facts.fps)]
    # Untagged: ffmpeg would assume BT.601 for all sizes.
    pick += [] if facts.tagged else ["-vf", f"scale=in_color_matrix={facts.matrix},format=rgb24"]
    number = -1
    with closing(_reader(path, pick)) as frames:
        try:
            next(frames)
            for number, data in enumerate(frames):
                if number >= first:
                    yield number, np.frombuffer(data, np.uint8).reshape(facts.height, facts.width, 3)
                if number == last:
                    break
        except (OSError, RuntimeError, StopIteration) as error:
            raise FileError(path, f"broken video (after {number + 1} frames)") from error
    if number < 0:
        raise FileError(path, "a video without frames")


def _reader(path: Path, parameters: list[str]) -> Any:
    import imageio_ffmpeg

    # It warns about rotated clips, whose size differs; that is irrelevant here.
    logging.getLogger("imageio_ffmpeg").setLevel(logging.ERROR)
    # Absolute, so that `-x.mp4` is not taken for an option, nor `http:x` for an address.
    return imageio_ffmpeg.read_frames(
        str(path.absolute()), input_params=_ONLY_FILES, output_params=parameters
    )


@contextlib.contextmanager
def film(
    path: Path, fps: float | Fraction, matrix: str = "bt709", crf: int = CRF, comment: str = ""
) -> Iterator[Callable[[Frame], None]]:
    """Write an .mp4 (H.264, yuv420p) to `path`, atomically; yields a function to call with each frame.

    All frames must have the size of the first; an odd side is made even by repeating its last pixels, as
    yuv420p requires. matrix: as in ClipFacts. comment: stored in the file's metadata. Raises FileError if it
    cannot be written, without an H.264 encoder, or without frames; WranganError without ffmpeg.
    """
    program = ffmpeg()
    process: subprocess.Popen[bytes] | None = None
    with replaced_atomically(path) as temporary, tempfile.TemporaryFile() as said:

        def write(frame: Frame) -> None:
            nonlocal process
            height, width = frame.shape[:2]
            if height % 2 or width % 2:
                frame = np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            if process is None:
                size = f"{frame.shape[1]}x{frame.shape[0]}"
                command = _encoding(program, temporary, size, fps, matrix, crf, comment)
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said
                )
            assert process.stdin is not None
            try:
                process.stdin.write(np.ascontiguousarray(frame).data)
            except OSError as error:
                process.wait()
                raise FileError(path, _why(said)) from error

        try:
            yield write
            if process is None:
                raise FileError(path, "not written: there are no frames")
            with contextlib.suppress(OSError):  # the exit code is more informative
                process.stdin.close()  # type: ignore[union-attr]
            if process.wait() != 0:
                raise FileError(path, _why(said))
        finally:
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()


def add_sound(silent: Path, clip: Path, out: Path) -> None:
    """Write the picture of `silent` with the sound of `clip`, if any, as an .mp4 at `out`; atomically.

    Nothing is re-encoded, unless .mp4 cannot hold the sound: it then becomes AAC, with a warning in the log.
    Raises FileError if it cannot be written.
    """
    program = ffmpeg()
    base = [program, "-y", "-nostdin", "-v", "error", "-i", str(silent.absolute()), *_ONLY_FILES]
    base += ["-i", str(clip.absolute()), "-map", "0:v:0", "-map", "1:a?", "-c:v", "copy"]
    with replaced_atomically(out) as temporary:
        end = ["-movflags", "+faststart", "-f", "mp4", str(temporary.absolute())]
        first = subprocess.run([*base, "-c:a", "copy", *end], capture_output=True)
        if first.returncode == 0:
            return
        second = subprocess.run([*base, "-c:a", "aac", *end], capture_output=True)
        if second.returncode != 0:
            raise FileError(out, f"not written ({_last_line(second.stderr)})")
        logger.warning("%s: .mp4 cannot hold the sound of %s: re-encoding it as AAC", out, clip.name)


def check_film(path: Path) -> None:
    """UsageError for a file name without .mp4."""
    if path.suffix.lower() != ".mp4":
        raise UsageError(f"{path}: clips can only be written as .mp4")


def _encoding(
    program: str, path: Path, size: str, fps: float | Fraction, matrix: str, crf: int, comment: str
) -> list[str]:
    rate = str(Fraction(fps).limit_denominator(100_000))
    tags = ":".join(f"{name}={matrix}" for name in ("colorspace", "color_primaries", "color_trc"))
    colours = f"scale=out_color_matrix={matrix}:out_range=tv,format=yuv420p,setparams={tags}:range=tv"
    return [
        *[program, "-y", "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", rate],
        *["-i", "-", "-vf", colours, "-c:v", "libx264", "-crf", str(crf)],
        *(["-metadata", f"comment={comment}"] if comment else []),
        *["-movflags", "+faststart", "-f", "mp4", str(path.absolute())],
    ]


def _why(said: Any) -> str:
    said.seek(0)
    text = said.read()
    if b"Unknown encoder" in text:
        return "not written: this ffmpeg has no H.264 encoder (libx264)"
    return f"not written ({_last_line(text)})"


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "ffmpeg failed"
