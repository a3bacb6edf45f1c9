"""Split a zip of images into one to train on and one to measure on.

    python examples/hold_out.py churches-128.zip --every 15

writes churches-128-train.zip and churches-128-heldout.zip (every fifteenth image, in the order of
the names) beside it, or into --out. The images are copied as they are.
"""

import argparse
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

from wrangan_cli.engine.base.files import replaced_atomically


def main() -> None:
    """Write both zips, and print the number of images in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--every", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder; default: beside the zip")
    options = parser.parse_args()
    with ZipFile(options.images) as source:
        names = sorted(name for name in source.namelist() if not name.endswith("/"))
        held = names[options.every - 1 :: options.every]
        parts = {"train": [name for name in names if name not in set(held)], "heldout": held}
        for part, members in parts.items():
            path = (options.out or options.images.parent) / f"{options.images.stem}-{part}.zip"
            with replaced_atomically(path) as temporary, ZipFile(temporary, "w", ZIP_STORED) as target:
                for name in members:
                    target.writestr(name, source.read(name))
            print(f"{path}  {len(members)} images")


if __name__ == "__main__":
    main()
