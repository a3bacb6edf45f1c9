"""Make a synthetic clip of a face: a generated image, slowly edited along directions, on a moving background.

    python -m tests.benchmarks.made_clip --model ffhq --frames 36 --out made.mp4

It contains no photograph of a person. It is easier to invert than a real clip, since the face is generated.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from wrangan_cli.engine.base.runtime import seeded_latents
from wrangan_cli.engine.data.ffmpeg import film
from wrangan_cli.engine.data.images import to_pillow
from wrangan_cli.engine.editing.directions import Move, edit_code, find_direction, load_directions
from wrangan_cli.engine.faces.alignment import Points, paste_back
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import Code, render
from wrangan_cli.engine.models.folder import Model


def background(number: int, size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A smooth random picture (width, height) that moves by 2 px per frame."""
    width, height = size
    small = np.random.default_rng(seed).integers(40, 216, (9, 24, 3), dtype=np.uint8)
    wide = Image.fromarray(small).resize((width * 2, height), Image.Resampling.BICUBIC)
    left = (2 * number) % width
    return wide.crop((left, 0, left + width, height))


def moving_quad(number: int, size: tuple[int, int], side: float) -> Points:
    """The corners (4, 2) of a square of `side` px that sways, rotates by ±4° and changes its size by ±3 %."""
    phase = 2 * math.pi * number / 48
    centre = np.array(size) / 2 + np.array(
        [0.06 * size[0] * math.sin(phase), 0.03 * size[1] * math.cos(phase)]
    )
    turn, half = math.radians(4) * math.sin(phase / 2), side / 2 * (1 + 0.03 * math.sin(phase))
    across = half * np.array([math.cos(turn), math.sin(turn)])
    down = np.array([-across[1], across[0]])
    return centre + np.stack([-across - down, -across + down, across + down, across - down])


def composed(
    faces: Iterator[Image.Image], size: tuple[int, int], side: float
) -> Iterator[tuple[NDArray[np.uint8], Points]]:
    """Each face pasted into its moving square on the moving background: (H, W, 3), and the square."""
    for number, face in enumerate(faces):
        quad = moving_quad(number, size, side)
        yield np.asarray(paste_back(background(number, size), face, quad, 0.1)), quad


def moved_faces(model: Model, seed: int, frames: int, side: int) -> Iterator[Image.Image]:
    """Images of one person whose pose varies by ±1.2 and whose smile varies by ±1.5 standard deviations."""
    known = load_directions(model)
    z = seeded_latents([seed], model.generator.config.style_dim)
    with torch.no_grad():
        w = model.w_mean + 0.7 * (model.generator.style(z)[0] - model.w_mean)
    for number in range(frames):
        phase = 2 * math.pi * number / 48
        moves = [
            Move(find_direction(known, "pose", model.name), 1.2 * math.sin(phase)),
            Move(find_direction(known, "smile", model.name), 1.5 * math.sin(1.5 * phase)),
        ]
        code = edit_code(Code(w), moves, model.generator.config.num_latents)
        yield to_pillow(render(model, [code], side)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="ffhq")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--frames", type=int, default=36)
    parser.add_argument("--fps", type=float, default=25)
    parser.add_argument("--out", type=Path, default=Path("made.mp4"))
    given = parser.parse_args()
    faces = moved_faces(load_model(given.model), given.seed, given.frames, 256)
    with film(given.out, given.fps, "smpte170m") as write:
        for frame, _ in composed(faces, (480, 360), 256):
            write(frame)
    print(given.out)


if __name__ == "__main__":
    main()
