"""Which way of taking steps? Distortion, corruption and time of one set of photographs.

    python -m tests.benchmarks.schedules --photos photos/ --out schedules.csv \
        steps=500 steps=125,optimizer=lbfgs steps=125,lr=0.01,epsilon_lr=0.06,decay=0.5

Each word is one row: settings of `wrangan invert`, all others at their defaults.
"""

from dataclasses import fields
from typing import Any

from tests.benchmarks.study import Study, read_rows, say, study_arguments, write_rows
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.model_folder import load_model

_DEFAULTS = InversionSettings()


def parsed(word: str) -> InversionSettings:
    """`steps=125,lr=0.01` → settings. Raises ValueError for a name or value that cannot be."""
    known = {field.name for field in fields(InversionSettings)}
    given: dict[str, Any] = {}
    for part in word.split(","):
        name, _, value = part.partition("=")
        if name not in known:
            raise ValueError(f"{name}: no such setting")
        default = getattr(_DEFAULTS, name)
        given[name] = (
            value if isinstance(default, str) else int(value) if type(default) is int else float(value)
        )
    return InversionSettings(**given)


def main() -> None:
    """Write the table."""
    parser = study_arguments(__doc__, samples=1000)
    parser.add_argument("runs", nargs="+", metavar="NAME=VALUE,…")
    arguments = parser.parse_args()
    runs = {word: parsed(word) for word in arguments.runs}
    model = load_model(arguments.model)
    study = Study(model, arguments.photos, arguments.limit, arguments.batch, arguments.samples)
    rows: list[dict[str, Any]] = list(read_rows(arguments.out))
    for word, settings in runs.items():
        if any(row["settings"] == word for row in rows):
            continue
        rows.append({"settings": word, **study.measure(model.generator, settings)})
        say(rows[-1:])
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
