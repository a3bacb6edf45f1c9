"""One figure of a folder made by demo.sh: photograph | inverted | each edit. overview.py FOLDER"""

import sys
from pathlib import Path

import torch
from torch.nn.functional import interpolate

from wrangan_cli.engine.codes import load_code, render
from wrangan_cli.engine.images import labelled_grid, load_image, save_image
from wrangan_cli.engine.model_folder import load_model


def overview(folder: Path, enlarge: int = 2) -> Path:
    """Draw `overview.png` in `folder` from its photos/, codes/ and edited/."""
    model = load_model()
    codes = sorted((folder / "codes").glob("*.st"))
    drawn = render(model, [load_code(path, model) for path in codes])
    edits = sorted({path.stem.removeprefix(f"{codes[0].stem}-") for path in _edits(folder, codes[0].stem)})
    rows = []
    for path, image in zip(codes, drawn, strict=True):
        photo = load_image(folder / "photos" / f"{path.stem}.png", model.resolution)
        changed = [load_image(folder / "edited" / f"{path.stem}-{edit}.png") for edit in edits]
        row = torch.stack([photo, image.clamp(-1, 1), *changed])
        rows.append(interpolate(row, scale_factor=enlarge, mode="nearest"))
    names = [path.stem for path in codes]
    out = folder / "overview.png"
    save_image(out, labelled_grid(rows, names, ["photograph", "inverted", *edits]))
    return out


def _edits(folder: Path, stem: str) -> list[Path]:
    return list((folder / "edited").glob(f"{stem}-*.png"))


if __name__ == "__main__":
    print(overview(Path(sys.argv[1])))
