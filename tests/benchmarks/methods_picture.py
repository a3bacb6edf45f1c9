"""Make the picture of the README: photographs, their inversions by each method, and edits.

    python -m tests.benchmarks.methods_picture --photos photos/ --codes encoder=codes/encoder \\
        --codes "w only=codes/sg2-w" --codes "(w, eps)=codes/wrangan" --edit smile=2 --edit age=2 \\
        --names 001 003 004 --out methods.jpg

The codes of the last folder are edited; strengths are in standard deviations of w along the direction.
"""

import argparse
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.editing.directions import (
    Move,
    directions_file,
    edit_code,
    find_direction,
    load_directions,
)
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.pairs import pair_by_stem
from wrangan_cli.engine.models.codes import load_code, render


def main() -> None:
    """Write the picture, with one row per photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--codes", action="append", required=True, help="LABEL=FOLDER")
    parser.add_argument("--edit", action="append", default=[], help="DIRECTION=STRENGTH")
    parser.add_argument("--names", nargs="+", required=True, help="photographs, without their suffixes")
    parser.add_argument("--out", type=Path, required=True, help="picture (.png, .jpg)")
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    known = load_directions(model)
    folders = dict(entry.split("=", 1) for entry in arguments.codes)
    last = Path(list(folders.values())[-1])
    edits = dict(entry.split("=", 1) for entry in arguments.edit)
    pairs = {pair.photo.stem: pair for pair in pair_by_stem(arguments.photos, last)[0]}
    rows = []
    for name in arguments.names:
        codes = [load_code(Path(folder) / f"{name}.st", model) for folder in folders.values()]
        latents = model.generator.config.num_latents
        for direction, strength in edits.items():
            moves = [Move(find_direction(known, direction, directions_file(model)), float(strength))]
            codes.append(edit_code(codes[len(folders) - 1], moves, latents))
        photo = load_image(pairs[name].photo, model.resolution)
        row = torch.cat([photo[None], render(model, codes).clamp(-1, 1)])
        rows.append(interpolate(row, scale_factor=2, mode="bicubic", antialias=False).clamp(-1, 1))
    columns = ["photograph", *folders, *(f"{direction} +{strength}" for direction, strength in edits.items())]
    save_image(arguments.out, labelled_grid(rows, [""] * len(rows), columns))


if __name__ == "__main__":
    main()
