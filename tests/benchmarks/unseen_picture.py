"""Make the picture of docs/inversion.md: crops at the model's side of the same photograph's codes.

    python -m tests.benchmarks.unseen_picture without.st with.st --out docs/images/unseen-detail.jpg \
        --titles "--detail-weight 0" default --crop 40,60 --crop 560,60
"""

import argparse
from pathlib import Path

import torch

from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.editing.directions import Move, edit_code, load_directions
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code, render

SIDE = 400
"""Side of the crops in px."""


def main() -> None:
    """Write the picture: a column for each code and crop, the inversion above its smile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("codes", type=Path, nargs="+")
    parser.add_argument("--model", default="ffhq")
    parser.add_argument("--titles", nargs="+", required=True, help="a title for each code")
    parser.add_argument("--crop", action="append", required=True, help="X,Y of the upper left corner in px")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    model = load_model(arguments.model)
    smile = Move(load_directions(model)["smile"], 2.0)
    corners = [tuple(map(int, text.split(","))) for text in arguments.crop]
    rows: list[list[torch.Tensor]] = [[], []]
    for path in arguments.codes:
        code = load_code(path, model)
        edited = edit_code(code, [smile], model.generator.config.num_latents)
        for row, one in zip(rows, (code, edited), strict=True):
            image = render(model, [one])[0].clamp(-1, 1)
            row.extend(image[:, y : y + SIDE, x : x + SIDE] for x, y in corners)
    titles = [title for title in arguments.titles for _ in corners]
    save_image(
        arguments.out, labelled_grid([torch.stack(row) for row in rows], ("inverted", "smile +2"), titles)
    )


if __name__ == "__main__":
    main()
