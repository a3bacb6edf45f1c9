"""Images after one another as a moving picture: .gif or .mp4."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from wrangan_cli.engine.errors import FileError, UsageError, WranganError
from wrangan_cli.engine.files import replaced_atomically
from wrangan_cli.engine.images import to_uint8
from wrangan_cli.engine.installation import install_line

SUFFIXES = (".gif", ".mp4")


def save_animation(path: Path, images: Tensor, fps: float = 8.0) -> None:
    """Write (N, 3, H, W) in [-1, 1] as .gif (endless, 256 colours an image) or .mp4 (H.264), atomically.

    fps: images a second, above 0. Raises UsageError for another suffix or a bad fps,
    WranganError for values that are not finite or when .mp4 is asked for without imageio and its
    ffmpeg, FileError where the file cannot be written.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: moving pictures are written as {', '.join(SUFFIXES)}")
    check_fps(fps)
    if not images.isfinite().all():
        raise WranganError(f"{path}: not written, an image has values that are not finite")
    frames = to_uint8(images).permute(0, 2, 3, 1).contiguous().numpy()
    write_mp4 = _mp4_writer() if path.suffix.lower() == ".mp4" else None
    try:
        with replaced_atomically(path) as temporary:
            if write_mp4 is None:
                pictures = [Image.fromarray(frame) for frame in frames]
                pictures[0].save(
                    temporary,
                    format="GIF",
                    save_all=True,
                    append_images=pictures[1:],
                    duration=1000 / fps,
                    loop=0,
                )
            else:
                # Sides are powers of two: no padding to the codec's blocks is needed.
                with write_mp4(temporary, fps=fps, codec="libx264", quality=9, macro_block_size=1) as film:
                    for frame in frames:
                        film.append_data(frame)
    except OSError as error:
        raise FileError(path, f"not written ({error.strerror or error})") from error


def check_fps(fps: float) -> None:
    """UsageError when fps is no sensible number of images a second."""
    if not (math.isfinite(fps) and 0 < fps <= 100):
        raise UsageError(f"fps {fps}: expected a number above 0 and up to 100")


def _mp4_writer() -> Callable[..., Any]:
    """imageio's `get_writer`, once it is sure that it has an ffmpeg."""
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise WranganError(
            f".mp4 needs imageio with ffmpeg: {install_line('video')} (.gif works without)"
        ) from error
    return imageio.get_writer
