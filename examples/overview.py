"""One figure of a folder made by demo.sh: photograph | inverted | each edit. overview.py FOLDER"""

import sys
from pathlib import Path

from wrangan_cli.engine.data.image_reading import load_image
from wrangan_cli.engine.data.image_writing import save_image
from wrangan_cli.engine.data.images import labelled_grid
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import load_code, render

SIDE = 384


def overview(folder: Path) -> Path:
    """Draw `overview.png` in `folder` from its photos/, codes/ and edited/."""
    model = load_model()
    codes = sorted((folder / "codes").glob("*.st"))
    rows, edits = [], []
    for path in codes:
        files = sorted((folder / "edited").glob(f"{path.stem}-*.png"))
        edits = [file.stem.removeprefix(f"{path.stem}-") for file in files]
        drawn = render(model, [load_code(path, model)], SIDE)[0].clamp(-1, 1)
        photo = load_image(folder / "photos" / f"{path.stem}.png", SIDE)
        rows.append([photo, drawn, *(load_image(file, SIDE) for file in files)])
    out = folder / "overview.png"
    names = [path.stem for path in codes]
    save_image(out, labelled_grid(rows, names, ["photograph", "inverted", *edits], gap=4, font_size=20))
    return out


if __name__ == "__main__":
    print(overview(Path(sys.argv[1])))
