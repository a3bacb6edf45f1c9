"""`wrangan report`: invert with every method, measure, write tables, figures and a page."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrangan_cli.commands.evaluation import rate_callback
from wrangan_cli.commands.evaluation_samples import reference_of
from wrangan_cli.commands.invert import invert_photos
from wrangan_cli.commands.panels import MACHINE
from wrangan_cli.commands.shell import Results, by_main, progress, say
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import FileError, WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.inversion.settings import InversionSettings
    from wrangan_cli.engine.metrics.samples import Reference
    from wrangan_cli.engine.models.folder import Model

CODES = "codes"
SAMPLES = 2000
BATCH = 16


class _Quiet(Results):
    """Reports failures and keeps their lines, but does not print paths: codes are not results here."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def wrote(self, path: Path, **record: Any) -> None:
        """Codes are not results here."""

    def failed(self, error: Exception | str, path: Path | None = None) -> None:
        """Report the failure, and keep its line for the page."""
        super().failed(error, path)
        named = path is None or isinstance(error, FileError)
        self.lines.append(str(error) if named else f"{path}: {error}")


@dataclass(frozen=True)
class ReportRequest:
    """The inputs and options of a report."""

    photos: Path
    out: Path
    codes: Path | None = None
    """Parent of the methods' folders of codes; None: `out/codes`."""
    methods: str = "all"
    settings: Sequence[str] = ()
    """NAME=VALUE or METHOD.NAME=VALUE."""
    reference: Path | None = None
    """Real images; None: the features stored with the model."""
    samples: int = SAMPLES
    seed: int = 0
    batch: int = BATCH


def report(
    photos: Annotated[Path, typer.Argument(help="Aligned photographs: a folder or a zip.")],
    out: Annotated[Path, typer.Option(help="Folder of the report; existing results are kept.")] = Path(
        "report"
    ),
    methods: Annotated[
        str, typer.Option(help="Methods, separated by commas; all: every method that the model supports.")
    ] = "all",
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Repeatable. NAME=VALUE for all methods that have the setting (steps=125), "
            "METHOD.NAME=VALUE for one, or a setting of the report (docs/report.md).",
        ),
    ] = None,
    codes: Annotated[
        Path | None,
        typer.Option(help="Folder that holds one folder of codes per method.", show_default="OUT/codes"),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Zip, folder or LMDB of real images; default: the features stored with the model."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(
            min=0, help="Number of images for Table 3, and for each method in Table 4; 0: omit both tables."
        ),
    ] = SAMPLES,
    model: Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")] = DEFAULT_MODEL,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated images.")] = 0,
    batch: Annotated[
        int,
        typer.Option(
            min=1, help="Number of photographs or images processed together.", rich_help_panel=MACHINE
        ),
    ] = BATCH,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …", rich_help_panel=MACHINE)] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.", rich_help_panel=MACHINE)
    ] = False,
) -> None:
    """Compare methods on photographs: make all tables and figures of the paper, and a page that shows them.

    Every photograph is inverted with every method. Codes, tables, figures and the page are written to the
    folder --out, and their paths printed. A second run computes only what is missing.
    """
    request = ReportRequest(photos, out, codes, methods, setting or [], reference, samples, seed, batch)
    run_report(Results(as_json), request, model, device)


def run_report(results: Results, request: ReportRequest, model: str, device: str) -> None:
    """Make the report, and exit with 1 if anything failed."""
    from wrangan_cli.engine.base.distributed import process_group
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model

    with process_group():
        load = cache(lambda: load_model(model, resolve_device(device)))
        by_main(lambda: bool(load()))  # so that an error is reported only once
        _make(results, load(), request)
        results.finish()


def _make(results: Results, model: "Model", request: ReportRequest) -> None:
    """Make the report; under torchrun every process must call this, and inverts a part of the photographs."""
    from wrangan_cli.engine.base.distributed import gather_objects, is_main
    from wrangan_cli.engine.base.files import check_can_be_made
    from wrangan_cli.engine.data.photo_files import find_images
    from wrangan_cli.engine.inversion.folder import plan
    from wrangan_cli.engine.reports.plots import require_matplotlib
    from wrangan_cli.engine.reports.run import write_report
    from wrangan_cli.engine.reports.settings import chosen_methods, parse_settings, possible_methods
    from wrangan_cli.engine.reports.subject import Subject

    names = chosen_methods(request.methods)
    settings, of_report = parse_settings(request.settings, names, samples=request.samples, seed=request.seed)
    require_matplotlib()
    by_main(lambda: check_can_be_made(request.out))
    found = by_main(lambda: find_images([request.photos]))
    everything = request.methods.strip() == "all"
    chosen, lacking = by_main(lambda: possible_methods(model, settings, everything))
    folders = {method: (request.codes or request.out / CODES) / method for method in chosen}
    failed_here = _invert_missing(model, found, folders, settings, request.batch)
    results.failures += len(failed_here)
    reported = [line for lines in gather_objects(failed_here) for line in lines]
    if not is_main():
        return

    def real() -> "Reference":
        from wrangan_cli.engine.metrics.samples import model_reference

        if request.reference is None:
            return model_reference(model)
        return reference_of(results, model, request.reference, inception(), request.batch, alone=True)

    @cache
    def inception() -> Callable[..., Any]:
        from wrangan_cli.engine.metrics.inception import load_inception

        return load_inception(model.device, wanted_by="fid, kid")

    kept = [job.photo for job in plan(found, request.out)[0]]
    subject = Subject(
        model=model,
        photos=kept,
        codes=folders,
        wanted=settings,
        out=request.out,
        settings=of_report,
        reference=real,
        inception=inception,
        batch=request.batch,
        track=_progress_bar,
        remarks=list(lacking),
        reported=reported,
    )
    written = write_report(subject)
    for error in subject.failures:
        if str(error) not in reported:
            results.failed(error)
    for line in subject.remarks:
        say(f"wrangan: {line}")
    for path in written.files:
        results.wrote(path)


def _invert_missing(
    model: "Model",
    photos: list[Path],
    folders: dict[str, Path],
    settings: "dict[str, InversionSettings]",
    batch: int,
) -> list[str]:
    """Make the missing codes; return the lines, already printed, about this process's failures."""
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
def _progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress(what, total) as bar:
        yield rate_callback(bar)
