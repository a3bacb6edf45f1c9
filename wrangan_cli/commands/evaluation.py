"""What `wrangan evaluate` does for each kind of metric: measure, print, report failures."""

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from wrangan_cli.commands.shell import Results, by_main, progress
from wrangan_cli.engine.base.errors import WranganError

if TYPE_CHECKING:
    from rich.progress import Progress

    from wrangan_cli.engine.metrics.base import PairMetric, RecordMetric
    from wrangan_cli.engine.metrics.pairs import Compared, Measure
    from wrangan_cli.engine.models.folder import Model


@dataclass(frozen=True)
class PairInputs:
    """The photographs and codes to compare."""

    photos: Path
    codes: Path
    against: Path | None
    """Codes of another method, to compare with by photograph."""
    csv_file: Path | None
    batch: int
    metric_side: int
    """Side in px to which larger photographs and their images are reduced; 0: not at all."""


def evaluate_pairs(results: Results, model: "Model", names: Sequence[str], plan: PairInputs) -> None:
    """Compare photographs with the images of their codes; print the mean of each metric."""
    from wrangan_cli.engine.base.distributed import is_main
    from wrangan_cli.engine.metrics.pairs import differing_sides, load_metrics, side_note
    from wrangan_cli.engine.metrics.registry import RECORD_METRICS, pair_metrics, record_metrics

    metrics, records = pair_metrics(names), record_metrics(names)
    measures, lacking = load_metrics(metrics, model.device)
    if is_main():
        for error in lacking:
            results.failed(error)
    done = _compared(results, model, plan.codes, measures, records, plan)
    other = [] if plan.against is None else _compared(results, model, plan.against, measures, records, plan)
    if not is_main() or not done:
        return
    unlike = differing_sides(done, other)
    for stem, (here, there) in unlike.items():
        sides = f"made at {here} px in {plan.codes} and at {there} px in {plan.against}"
        results.failed(f"{stem}: {sides}, so they cannot be compared: invert both with the same --size")
    everything: list[PairMetric | RecordMetric] = [*metrics, *records]

    def compared_at(metric: "PairMetric | RecordMetric") -> dict[str, Any]:
        if metric.name in RECORD_METRICS:
            return {"protocol": metric.protocol}
        protocol = f"{metric.protocol}; {side_note(plan.metric_side)}"
        return {"protocol": protocol, "metric_side": plan.metric_side}

    for metric in everything:
        values = {row.pair.photo.stem: row.values[metric.name] for row in done if metric.name in row.values}
        if not values:
            continue
        _record_mean(
            results,
            model,
            list(values.values()),
            "pair",
            per_batch=metric.name in RECORD_METRICS,
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            **compared_at(metric),
        )
        if plan.against is not None:
            theirs = {r.pair.photo.stem: r.values[metric.name] for r in other if metric.name in r.values}
            mine = {stem: value for stem, value in values.items() if stem not in unlike}
            _print_comparison(results, metric, mine, theirs, plan.against)
    if plan.csv_file is not None:
        _write_csv(plan.csv_file, [*measures, *(metric.name for metric in records)], done)
        results.wrote(plan.csv_file)


def _compared(
    results: Results,
    model: "Model",
    codes: Path,
    measures: "Mapping[str, Measure]",
    records: "Sequence[RecordMetric]",
    plan: PairInputs,
) -> "list[Compared]":
    """The pairs that can be compared, in order, in the first process; the others are reported."""
    from wrangan_cli.engine.base.distributed import gather_shards, is_main, local_shard
    from wrangan_cli.engine.metrics.pairs import compare_pairs, pair_by_stem

    pairs, left = by_main(lambda: pair_by_stem(plan.photos, codes))
    here: list[Compared] = []
    if measures or records:
        shard = local_shard(pairs)
        with progress("comparing", len(shard)) as bar:
            advance = rate_callback(bar)
            found = compare_pairs(model, shard, measures, plan.batch, records, plan.metric_side)
            for count, compared in enumerate(found, 1):
                here.append(compared)
                advance(count)
    whole = gather_shards(here)
    if is_main():
        for error in left:
            results.failed(error)
        for compared in whole:
            if compared.error is not None:
                results.failed(compared.error, compared.pair.photo)
            for name, why in compared.missing.items():
                results.failed(f"{name}: {why}", compared.pair.code)
    return [compared for compared in whole if compared.error is None]


def _record_mean(
    results: Results,
    model: "Model",
    values: Sequence[float],
    unit: str,
    *,
    metric: str,
    protocol: str,
    per_batch: bool = False,
    **more: Any,
) -> None:
    """Print the mean of a metric with its bootstrap interval; without it for values measured per batch."""
    from wrangan_cli.engine.metrics.base import mean_interval

    mean, interval = mean_interval(values)
    if per_batch:
        interval = None
    spread = f"95 % [{interval[0]:.6g}, {interval[1]:.6g}]" if interval else "no interval"
    counted = f"1 {unit}" if len(values) == 1 else f"{len(values)} {unit}s"
    results.record(
        f"{metric}  {mean:.6g}  {spread}  {counted}  ({protocol})",
        metric=metric,
        value=mean,
        interval=interval,
        confidence=0.95,
        count=len(values),
        **more,
        protocol=protocol,
        model=model.name,
    )


def _print_comparison(
    results: Results,
    metric: "PairMetric | RecordMetric",
    first: Mapping[str, float],
    second: Mapping[str, float],
    against: Path,
) -> None:
    from wrangan_cli.engine.metrics.comparison import compare_paired

    try:
        found = compare_paired(first, second, metric.higher_is_better)
    except WranganError as error:
        results.failed(f"{metric.name}: {error}", against)
        return
    low, high = found.interval
    results.record(
        f"{metric.name}  wins {100 * found.fraction_won:.3g} % of {found.count} against {against}  "
        f"95 % [{100 * low:.3g}, {100 * high:.3g}]  mean difference {found.difference:.6g}",
        metric=metric.name,
        against=str(against),
        share_won=found.fraction_won,
        interval=found.interval,
        wins=found.wins,
        ties=found.ties,
        count=found.count,
        difference=found.difference,
        difference_interval=found.difference_interval,
        confidence=0.95,
    )


def open_csv(path: Path) -> IO[str]:
    """A text file to write a CSV into."""
    # Whatever the locale, names are UTF-8, or bytes that are not text.
    return open(path, "w", newline="", encoding="utf-8", errors="surrogateescape")


def _write_csv(path: Path, names: Sequence[str], rows: Sequence["Compared"]) -> None:
    from wrangan_cli.engine.base.files import replaced_atomically

    with replaced_atomically(path) as temporary, open_csv(temporary) as stream:
        writer = csv.writer(stream)
        writer.writerow(["photo", "code", *names])
        for row in rows:
            writer.writerow([row.pair.photo, row.pair.code, *(row.values.get(name, "") for name in names)])


def rate_callback(bar: "Progress") -> Callable[[int], None]:
    """A callback for the number of images done, which advances `bar` and shows the images per second."""
    start = time.monotonic()

    def advance(done: int) -> None:
        rate = done / max(time.monotonic() - start, 1e-9)
        bar.update(bar.task_ids[0], completed=done, rate=f"{rate:.1f} images/s")

    return advance


@dataclass(frozen=True)
class ConsistencyInputs:
    """The codes to edit, re-invert and move back."""

    codes: Path
    direction: str
    """Empty: the model's first."""
    strength: float
    csv_file: Path | None
    batch: int


def evaluate_consistency(
    results: Results, model: "Model", names: Sequence[str], plan: ConsistencyInputs
) -> None:
    """Print the latent editing consistency of a folder of codes."""
    from wrangan_cli.engine.base.distributed import gather_shards, is_main, local_shard
    from wrangan_cli.engine.editing.directions import check_strength, find_direction
    from wrangan_cli.engine.editing.directions import load_directions as load
    from wrangan_cli.engine.metrics.consistency import PROTOCOL, codes_consistency
    from wrangan_cli.engine.metrics.registry import edited_metrics
    from wrangan_cli.engine.models.codes import find_codes, load_code

    wanted = edited_metrics(names)
    if not wanted:
        return
    known = by_main(lambda: load(model))
    name = plan.direction or next(iter(known), "")
    direction = find_direction(known, name, model.name)
    check_strength(plan.strength, name)
    paths = by_main(lambda: find_codes(plan.codes))
    codes = by_main(lambda: [load_code(path, model) for path in paths])
    here = []
    with progress("re-inverting", len(local_shard(codes))) as bar:
        advance = rate_callback(bar)
        found = codes_consistency(model, local_shard(codes), direction, plan.strength, plan.batch)
        for count, entry in enumerate(found, 1):
            here.append(entry)
            advance(count)
    whole = gather_shards(here)
    if not is_main():
        return
    done = {}
    for path, entry in zip(paths, whole, strict=True):
        if isinstance(entry, WranganError):
            results.failed(entry, path)
        else:
            done[path] = entry.values
    if not done:
        return
    about = PROTOCOL.format(strength=plan.strength, direction=name)
    for metric, what in wanted.items():
        _record_mean(
            results,
            model,
            [values[metric] for values in done.values()],
            "code",
            metric=metric,
            direction=name,
            strength=plan.strength,
            higher_is_better=False,
            protocol=f"{what}; {about}",
        )
    if plan.csv_file is not None:
        _write_codes_csv(plan.csv_file, list(wanted), done)
        results.wrote(plan.csv_file)


def evaluate_drift(
    results: Results, model: "Model", names: Sequence[str], folder: Path, csv_file: Path | None, seed: int
) -> None:
    """Print the drift of a folder of codes: how far their offsets change the generator's other images."""
    from wrangan_cli.engine.base.distributed import gather_shards, is_main, local_shard
    from wrangan_cli.engine.metrics.drift import NAME, PROTOCOL, drift
    from wrangan_cli.engine.models.codes import find_codes, load_code

    if NAME not in names:
        return
    paths = by_main(lambda: find_codes(folder))
    codes = by_main(lambda: [load_code(path, model) for path in paths])
    here = []
    with progress("moving w", len(local_shard(codes))) as bar:
        for count, code in enumerate(local_shard(codes), 1):
            here.append(drift(model, code, seed))
            bar.update(bar.task_ids[0], completed=count)
    values = gather_shards(here)
    if not is_main():
        return
    _record_mean(
        results, model, values, "code", metric=NAME, seed=seed, higher_is_better=False, protocol=PROTOCOL
    )
    if csv_file is not None:
        done = {path: {NAME: value} for path, value in zip(paths, values, strict=True)}
        _write_codes_csv(csv_file, [NAME], done)
        results.wrote(csv_file)


def _write_codes_csv(path: Path, names: Sequence[str], rows: Mapping[Path, Mapping[str, float]]) -> None:
    from wrangan_cli.engine.base.files import replaced_atomically

    with replaced_atomically(path) as temporary, open_csv(temporary) as stream:
        writer = csv.writer(stream)
        writer.writerow(["code", *names])
        writer.writerows([code, *(values[name] for name in names)] for code, values in rows.items())
