"""Convert a report to its form in docs/results/: tables as CSV and one Markdown page, figures as small JPEGs.

python -m tests.benchmarks.compact_report out/ docs/results/faces-64-ffhq
python -m tests.benchmarks.compact_report out/ docs/results/ffhq --figures corruption edit-success std
"""

import argparse
import shutil
from pathlib import Path

from PIL import Image

WIDTH = 1000
"""In px; wider figures are reduced to this width."""


def main() -> None:
    """Write the folder, replacing its contents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--figures", nargs="*", help="names of the figures to include; default: all")
    arguments = parser.parse_args()
    if not (arguments.report / "tables.md").is_file():
        parser.error(f"{arguments.report}: not a report (it has no tables.md)")
    shutil.rmtree(arguments.out, ignore_errors=True)
    (arguments.out / "tables").mkdir(parents=True)
    page = [
        f"# {arguments.out.name}: tables and figures",
        (arguments.report / "tables.md").read_text().strip(),
        "## Figures",
    ]
    for table in sorted((arguments.report / "tables").glob("*.csv")):
        if len(table.read_text().splitlines()) > 1:  # a table that was left out has no rows
            shutil.copy(table, arguments.out / "tables")
    for figure in sorted((arguments.report / "figures").glob("*.png")):
        if arguments.figures is not None and figure.stem not in arguments.figures:
            continue
        image = Image.open(figure).convert("RGB")
        if image.width > WIDTH:
            image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
        image.save(arguments.out / f"{figure.stem}.jpg", quality=78, optimize=True)
        page.append(f"### {figure.stem}\n![{figure.stem}]({figure.stem}.jpg)")
    (arguments.out / "README.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
