"""Compare settings of an inversion: distortion, drift, corruption and time on one set of photographs.

    python -m tests.benchmarks.schedules --photos photos/ --out schedules.csv \
        steps=500 steps=125,optimizer=lbfgs steps=125,lr=0.01,epsilon_lr=0.06,decay=0.5
    python -m tests.benchmarks.schedules --model ffhq --photos photos/ --corruption 0 --out ffhq.csv \
        steps=200 steps=100,lr=0.04 method=weight-tuning,steps=200,lr=0.001 model=runs/s/model,steps=200

Each argument is one row: settings of `wrangan invert`; all others have the model's values, or their defaults.
`model=FOLDER` uses another model for this row, such as one with another σ or other random layers.

Photographs are compared at their own side, at most the model's. Drift is the effect of a fit on the rest of
the latent space: the distance between images of the tuned and the untuned generator at w moved by the size of
W in four directions, the same for all rows (the first ones of the corruption protocol), as MSE on [-1, 1] and
as perceptual distance, at 256 px at most. It renders eight images per photograph: with `ffhq` about 0.4 s
each on one core, so 3 s per photograph and row. Corruption is the KID of `--corruption` images at moved w,
which takes the same 0.4 s each, and 0.3 s for the Inception network. Seconds cover the inversion alone.

A row is written when it is complete, and the numbers of each photograph when its batch is complete, to
`NAME-photographs.csv` beside it, with which two rows can be compared by photograph. Existing results are not
computed again (with corruption a row is computed as a whole, since that needs all codes).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.benchmarks.study import (
    DIRECTIONS,
    Row,
    Study,
    read_rows,
    say,
    study_arguments,
    summary,
    write_rows,
)
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.inversion.method_settings import METHODS
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.library import load_model
from wrangan_cli.engine.models.codes import Code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.reports.settings import parse_settings


@dataclass(frozen=True)
class Run:
    """The settings of one row."""

    word: str
    settings: InversionSettings
    model: str | None = None
    """Name or folder of a model; None: that of `--model`."""


def parsed(word: str) -> Run:
    """`method=weight-tuning,steps=125` → a run. Raises UsageError for an invalid name or value."""
    given = dict(_parts(word))
    method, model = given.pop("method", "wrangan"), given.pop("model", None)
    if method not in METHODS:
        raise UsageError(f"{word}: method {method!r}: expected one of {', '.join(METHODS)}")
    texts = [f"{method}.{name}={value}" for name, value in given.items()]
    try:
        return Run(word, parse_settings(texts, (method,))[0][method], model)
    except UsageError as error:
        raise UsageError(str(error).removeprefix("--set ")) from error


def _parts(word: str) -> Iterator[tuple[str, str]]:
    for part in word.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"{part!r} of {word!r}: expected NAME=VALUE")
        yield name.strip(), value.strip()


def photographs_file(out: Path) -> Path:
    """The file for the numbers of each photograph."""
    return out.with_name(f"{out.stem}-photographs{out.suffix}")


def measure_run(study: Study, model: Model, run: Run, out: Path, directions: int) -> Row:
    """The row of a run, for which the photographs that are not in the file yet are measured."""
    file, about = photographs_file(out), {"model": model.name, "settings": run.word}
    everything: list[Row] = list(read_rows(file))
    others = [row for row in everything if not _is_of(row, about)]
    wanted = [path.name for path in study.paths]
    # Corruption needs all codes, which are not kept.
    rows = [] if study.samples else [r for r in everything if _is_of(r, about) and r["photo"] in wanted]
    known = {row["photo"] for row in rows}
    codes: list[Code] = []
    todo = [path for path in study.paths if path.name not in known]
    for numbers, code in study.fitted(model, run.settings, todo, directions):
        rows.append({**about, **numbers})
        codes.append(code)
        write_rows(file, [*others, *rows])
    failed = len(study.paths) - len(rows)
    return {
        **about,
        "asked": len(study.paths),
        "failed": failed,
        **summary(rows),
        **study.corruption(model, codes),
    }


def _is_of(row: Row, about: Row) -> bool:
    return all(row.get(name) == value for name, value in about.items())


def main() -> None:
    """Write the tables."""
    parser = study_arguments(__doc__, samples=1000)
    parser.add_argument("--drift", type=int, default=DIRECTIONS, help="number of directions; 0: no drift")
    parser.add_argument("runs", nargs="+", metavar="NAME=VALUE,…")
    arguments = parser.parse_args()
    models = cache(load_model)
    try:
        runs = [parsed(word) for word in dict.fromkeys(arguments.runs)]
        chosen = [models(run.model or arguments.model) for run in runs]
        study = Study(
            models(arguments.model), arguments.photos, arguments.limit, arguments.batch, arguments.corruption
        )
        for run, model in zip(runs, chosen, strict=True):
            rows: list[Row] = list(read_rows(arguments.out))
            about = {"model": model.name, "settings": run.word}
            done = about | {"asked": str(len(study.paths))}
            if any(_is_of(row, done) for row in rows):
                continue
            row = measure_run(study, model, run, arguments.out, arguments.drift)
            say([row])
            write_rows(arguments.out, [*(r for r in rows if not _is_of(r, about)), row])
    except WranganError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
