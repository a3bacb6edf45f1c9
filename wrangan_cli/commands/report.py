"""`wrangan evaluate --report`: invert with every method, measure, write tables, figures and a page."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wrangan_cli.commands.evaluation import rated
from wrangan_cli.commands.evaluation_samples import reference_of
from wrangan_cli.commands.invert import invert_photos
from wrangan_cli.commands.shell import Results, by_main, progress, say
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.inversion.settings import InversionSettings
    from wrangan_cli.engine.metrics.samples import Reference
    from wrangan_cli.engine.models.folder import Model

CODES = "codes"


class _Quiet(Results):
    """Names failures and keeps the lines, but prints no path: the report's own files are the results."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def wrote(self, path: Path, **record: Any) -> None:
        """Nothing is said of a code."""

    def failed(self, error: Exception | str, path: Path | None = None) -> None:
        """As ever, and kept for the page."""
        super().failed(error, path)
        named = path is None or isinstance(error, FileError)
        self.lines.append(str(error) if named else f"{path}: {error}")


def make_report(
    results: Results,
    model: "Model",
    out: Path,
    photos: Path,
    codes: Path | None,
    methods: str,
    texts: Sequence[str],
    reference: Path | None,
    samples: int,
    seed: int,
    batch: int,
) -> None:
    """Everything of `--report`; of several processes all must call this (each inverts its share).

    codes: where the folders of the methods are, `out/codes` if None.
    """
    from wrangan_cli.engine.base.distributed import gather_objects, is_main
    from wrangan_cli.engine.base.files import check_can_be_made
    from wrangan_cli.engine.data.photo_files import find_images
    from wrangan_cli.engine.inversion.folder import plan
    from wrangan_cli.engine.reports.plots import require_matplotlib
    from wrangan_cli.engine.reports.run import write_report
    from wrangan_cli.engine.reports.settings import chosen_methods, parse_settings
    from wrangan_cli.engine.reports.subject import Subject

    names = chosen_methods(methods)
    settings, own = parse_settings(texts, names, samples=samples, seed=seed)
    require_matplotlib()
    by_main(lambda: check_can_be_made(out))
    found = by_main(lambda: find_images([photos]))
    chosen, lacking = by_main(lambda: _possible(model, settings, everything=methods.strip() == "all"))
    folders = {method: (codes or out / CODES) / method for method in chosen}
    own_lines = _inverted(model, found, folders, settings, batch)
    results.failures += len(own_lines)
    named = [line for lines in gather_objects(own_lines) for line in lines]
    if not is_main():
        return

    def real() -> "Reference":
        from wrangan_cli.engine.metrics.samples import model_reference

        if reference is None:
            return model_reference(model)
        return reference_of(results, model, reference, inception(), batch, alone=True)

    @cache
    def inception() -> Callable[..., Any]:
        from wrangan_cli.engine.metrics.inception import load_inception

        return load_inception(model.device, wanted_by="fid, kid")

    kept = [job.photo for job in plan(found, out)[0]]
    subject = Subject(
        model=model,
        photos=kept,
        codes=folders,
        wanted=settings,
        out=out,
        settings=own,
        reference=real,
        inception=inception,
        batch=batch,
        track=_watched,
        remarks=list(lacking),
        named=named,
    )
    report = write_report(subject)
    for error in subject.failures:
        if str(error) not in named:
            results.failed(error)
    for line in subject.remarks:
        say(f"wrangan: {line}")
    for path in report.files:
        results.wrote(path)


def _possible(
    model: "Model", settings: "dict[str, InversionSettings]", everything: bool
) -> tuple[list[str], list[str]]:
    """Methods that the model has what is needed for, and a line about each of the others.

    Raises the reason where a method was asked for by name, or where none is left.
    """
    from wrangan_cli.engine.inversion.inverter import Inverter

    chosen: list[str] = []
    lacking: list[str] = []
    for method, wanted in settings.items():
        try:
            Inverter.load(model, wanted)
        except (UsageError, FileError) as error:
            if not everything:
                raise
            lacking.append(f"method {method}: left out ({error})")
        else:
            chosen.append(method)
    if not chosen:
        raise UsageError("; ".join(lacking))
    return chosen, lacking


def _inverted(
    model: "Model",
    photos: list[Path],
    folders: dict[str, Path],
    settings: "dict[str, InversionSettings]",
    batch: int,
) -> list[str]:
    """Make the codes that are not there; a line about each failure of this process, said already."""
    lines: list[str] = []
    for method, folder in folders.items():
        quiet = _Quiet()
        try:
            invert_photos(photos, folder, settings[method], lambda: model, batch, False, quiet)
        except WranganError as error:
            quiet.failed(f"method {method}: {error}")
        lines += quiet.lines
    return lines


@contextlib.contextmanager
def _watched(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress(what, total) as bar:
        yield rated(bar)
