"""Make the figure photograph | encoder | w only | (w, eps) | edits for docs/.

    python -m tests.benchmarks.method_figure --photos photos/ --codes codes/ --out figure.png \
        --names a b c --edit smile=3 --edit age=3

`--codes` holds one folder of codes for each method: encoder/, sg2-w/, wrangan/.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.editing.directions import Move, edit_code, load_directions
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.metrics.pairs import pair_by_stem
from wrangan_cli.engine.models.codes import load_code, render

COLUMNS = {"encoder": "encoder", "sg2-w": "w only", "wrangan": "(w, eps)"}


def main() -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--codes", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--model", default="faces-64")
    parser.add_argument("--names", nargs="*", help="stems of the photographs; default: the first eight")
    parser.add_argument("--edit", action="append", default=[], help="direction=strength")
    parser.add_argument("--scale", type=int, default=2, help="enlargement (nearest neighbour)")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    directions = load_directions(model)
    moves = []
    for text in arguments.edit:
        name, _, strength = text.partition("=")
        moves.append(Move(directions[name], float(strength)))
    pairs, _ = pair_by_stem(arguments.photos, arguments.codes / "wrangan")
    wanted = arguments.names or [pair.photo.stem for pair in pairs[:8]]
    rows = []
    for pair in (pair for pair in pairs if pair.photo.stem in wanted):
        stem = pair.photo.stem
        codes = [load_code(arguments.codes / method / f"{stem}.st", model) for method in COLUMNS]
        latents = model.generator.config.num_latents
        codes += [edit_code(codes[-1], [move], latents) for move in moves]
        images = torch.stack(
            [load_image(pair.photo, model.resolution), *(render(model, [c])[0] for c in codes)]
        )
        rows.append(F.interpolate(images.clamp(-1, 1), scale_factor=arguments.scale))
    titles = ["photograph", *COLUMNS.values(), *(f"{m.direction.name} {m.strength:+g}" for m in moves)]
    save_image(arguments.out, labelled_grid(rows, (), titles))


if __name__ == "__main__":
    main()
