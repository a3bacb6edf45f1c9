"""What `wrangan evaluate` measures only for faces: edit success, and the faces in moved images."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from wrangan_cli.commands.evaluation import open_csv, rate_callback
from wrangan_cli.commands.shell import Results, by_main, progress
from wrangan_cli.engine.base.errors import WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.metrics.edit_success import Judge, Trial
    from wrangan_cli.engine.metrics.pairs import Pair
    from wrangan_cli.engine.metrics.sampling import Samples
    from wrangan_cli.engine.models.folder import Model


@dataclass(frozen=True)
class EditSuccessInputs:
    """The photographs and codes, and how to edit them."""

    photos: Path
    codes: Path
    direction: str
    """Empty: all directions that have a score."""
    strength: float | None
    """None: step by step."""
    csv_file: Path | None


def evaluate_edit_success(results: Results, model: "Model", plan: EditSuccessInputs) -> None:
    """Print the edit success of a folder of codes: one line per direction, and one for all."""
    from wrangan_cli.engine.base.distributed import gather_shards, is_main, local_shard
    from wrangan_cli.engine.metrics.pairs import pair_by_stem

    load = cache(lambda: _judge(model, plan))
    by_main(lambda: bool(load()))  # so that an error is reported only once
    judge = load()
    pairs, left = by_main(lambda: pair_by_stem(plan.photos, plan.codes))
    here = []
    with progress("editing", len(local_shard(pairs))) as bar:
        for count, pair in enumerate(local_shard(pairs), 1):
            here.append(_trials_of(model, judge, pair, plan.strength))
            bar.update(bar.task_ids[0], completed=count)
    whole = gather_shards(here)
    if not is_main():
        return
    for error in left:
        results.failed(error)
    found: dict[str, list[Trial]] = {}
    for pair, entry in zip(pairs, whole, strict=True):
        if isinstance(entry, list):
            found[pair.photo.stem] = entry
        else:
            results.failed(entry, pair.photo)
    if found:
        _print(results, model, found, list(judge.directions), plan.strength)
    if found and plan.csv_file is not None:
        _write_csv(plan.csv_file, found)
        results.wrote(plan.csv_file)


def _judge(model: "Model", plan: EditSuccessInputs) -> "Judge":
    from wrangan_cli.engine.editing.directions import check_strength, find_direction, load_directions
    from wrangan_cli.engine.metrics.edit_success import load_judge

    known = load_directions(model)
    if plan.strength is not None:
        check_strength(plan.strength, plan.direction or "edit-success")
    if plan.direction:
        return load_judge(model, [find_direction(known, plan.direction, model.name)])
    return load_judge(model, known.values(), only_scored=True)


def _trials_of(
    model: "Model", judge: "Judge", pair: "Pair", strength: float | None
) -> "list[Trial] | WranganError | OSError":
    from wrangan_cli.engine.data.photographs import load_photograph
    from wrangan_cli.engine.metrics.edit_success import trials
    from wrangan_cli.engine.models.codes import load_code

    try:
        photo = load_photograph(pair.photo, model.resolution)
        return list(trials(model, judge, photo, load_code(pair.code, model), strength))
    except (WranganError, OSError) as error:
        return error


def _print(
    results: Results,
    model: "Model",
    found: "dict[str, list[Trial]]",
    names: Sequence[str],
    strength: float | None,
) -> None:
    from wrangan_cli.engine.metrics import edit_success
    from wrangan_cli.engine.metrics.base import mean_interval

    how = edit_success.BY_STEPS if strength is None else edit_success.BY_STRENGTH.format(strength=strength)
    for name in [*names, "all"]:
        some = {stem: [t for t in tried if name in ("all", t.direction)] for stem, tried in found.items()}
        values = edit_success.by_photograph(some)
        if not values:
            results.failed(f"{edit_success.NAME}: {name}: the attribute is undecided in every photograph")
            continue
        mean, interval = mean_interval(list(values.values()))
        parts = edit_success.parts([trial for tried in some.values() for trial in tried])
        spread = f"95 % [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else "no interval"
        details = "  ".join(f"{part} {value:.3g}" for part, value in parts.items())
        results.record(
            f"{edit_success.NAME}  {name}  {mean:.3g}  {spread}  {len(values)} photographs  {details}  "
            f"({edit_success.PROTOCOL}{how})",
            metric=edit_success.NAME,
            direction=name,
            value=mean,
            interval=interval,
            confidence=0.95,
            count=len(values),
            **{part.replace(" ", "_"): value for part, value in parts.items()},
            strength=strength,
            higher_is_better=True,
            protocol=edit_success.PROTOCOL + how,
            model=model.name,
        )


def _write_csv(path: Path, found: "dict[str, list[Trial]]") -> None:
    from wrangan_cli.engine.base.files import replaced_atomically

    with replaced_atomically(path) as temporary, open_csv(temporary) as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["photo", "direction", "strength", "change", "reached", "face", "identity", "success", "counted"]
        )
        for stem, tried in found.items():
            for trial in tried:
                for p in trial.points:
                    flags = [int(p.reached), int(p.face), p.identity, int(p.success)]
                    counted = int(p is trial.outcome())
                    writer.writerow([stem, trial.direction, p.strength, p.change, *flags, counted])


def evaluate_face_fraction(
    results: Results, model: "Model", names: Sequence[str], folder: Path | None, samples: "Samples"
) -> None:
    """Print the fraction of moved images that show a face, for a folder of codes; only in the first
    process."""
    from wrangan_cli.engine.base.distributed import is_main
    from wrangan_cli.engine.metrics.corruption import FACE_PROTOCOL, face_fraction
    from wrangan_cli.engine.metrics.registry import face_metrics
    from wrangan_cli.engine.models.codes import find_codes, load_code

    if folder is None or not face_metrics(names) or not is_main():
        return
    codes = [load_code(path, model) for path in find_codes(folder)]
    with progress("detecting faces", samples.count) as bar:
        found = face_fraction(model, codes, samples.count, samples.seed, rate_callback(bar))
    for name in face_metrics(names):
        results.record(
            f"{name}  {found:.4g}  {len(codes)} codes, {samples.count} images  ({FACE_PROTOCOL})",
            metric=name,
            value=found,
            samples=samples.count,
            codes=len(codes),
            seed=samples.seed,
            higher_is_better=True,
            protocol=FACE_PROTOCOL,
            model=model.name,
        )
