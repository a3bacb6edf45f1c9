"""`wrangan invert`: photographs → codes."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.panels import inversion_panels
from wrangan_cli.commands.shell import AsJson, Null, Results, by_main, inputs, progress, say, settings_options
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError, WranganError
from wrangan_cli.engine.inversion.method_settings import SETTINGS, inversion_settings
from wrangan_cli.engine.inversion.settings import InversionSettings, OptimisingSettings

if TYPE_CHECKING:
    from wrangan_cli.engine.inversion.folder import Job
    from wrangan_cli.engine.inversion.inverter import Inverter
    from wrangan_cli.engine.models.folder import Model


@settings_options(SETTINGS, panels=inversion_panels(), make=inversion_settings)
def invert(
    settings: InversionSettings,
    photos: Annotated[
        list[Path] | None,
        typer.Argument(help="Aligned photographs or folders; without any, or with -, read paths from stdin."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the codes, one .st per photograph.")] = Path("codes"),
    model: Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")] = DEFAULT_MODEL,
    batch: Annotated[int, typer.Option(min=1, help="Number of photographs inverted together.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph",
            help="Replay one captured step (wrangan and weight-tuning with Adam; not with --stop-at).",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Re-invert photographs that already have a code.")
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Invert photographs into codes (w, ε), and print the paths of the codes, one per line.

    Photographs that already have a code in the output folder are skipped, so an interrupted
    run continues where it stopped. Under torchrun each process inverts a part.
    """
    from wrangan_cli.engine.base.distributed import process_group
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model

    with process_group():
        place = resolve_device(device)
        results = Results(as_json, null)
        loaded = cache(lambda: load_model(model, place))
        invert_photos(photos, out, settings, loaded, batch, overwrite, results, cuda_graph)
        results.finish()


def invert_photos(
    photos: list[Path] | None,
    out: Path,
    settings: InversionSettings,
    loaded: "Callable[[], Model]",
    batch: int,
    overwrite: bool,
    results: Results,
    cuda_graph: bool = False,
) -> None:
    """Make the missing codes; under torchrun each process makes a part, and every process must call this."""
    from wrangan_cli.engine.base.distributed import local_shard
    from wrangan_cli.engine.inversion.inverter import Inverter

    inverter = cache(lambda: Inverter.load(loaded(), settings, cuda_graph))

    def whole_list() -> "list[Job]":
        todo = _todo(photos, out, overwrite, settings, loaded, results)
        if todo:
            inverter()  # so that an error is reported only once
        return todo

    # One process makes the list, before any code is written, so that all see the same work.
    shard = local_shard(by_main(whole_list))
    if shard:
        _invert_all(inverter(), shard, batch, results)


def _todo(
    photos: list[Path] | None,
    out: Path,
    overwrite: bool,
    settings: InversionSettings,
    model: "Callable[[], Model]",
    results: Results,
) -> "list[Job]":
    """The photographs that have no code yet; existing codes and unusable photographs are reported."""
    from wrangan_cli.engine.base.files import check_can_be_made
    from wrangan_cli.engine.data.photo_files import find_images
    from wrangan_cli.engine.inversion.folder import plan, stored_code
    from wrangan_cli.engine.inversion.inverter import resolved

    found: list[Path] = []
    for path in inputs(photos):
        try:
            found += find_images([path])
        except (WranganError, OSError) as error:
            results.failed(error, path)
    if not found and not results.failures:
        raise UsageError("no photographs given")
    jobs, clashes = plan(found, out)
    for clash in clashes:
        results.failed(clash)
    todo: list[Job] = []
    for job in jobs:
        done = None if overwrite else stored_code(job, model(), resolved(settings, model()))
        if isinstance(done, WranganError):
            results.failed(done, job.code)
        elif done is not None:
            results.wrote(
                job.code, photo=str(job.photo), skipped=True, distortion=done.info.get("distortion")
            )
        else:
            todo.append(job)
    if todo:
        # Reported now rather than after the first batch; the folder is made with the first code.
        check_can_be_made(out)
    return todo


def _invert_all(inverter: "Inverter", todo: "Sequence[Job]", batch: int, results: Results) -> None:
    from wrangan_cli.engine.inversion.folder import described
    from wrangan_cli.engine.inversion.many import Progress, invert_many
    from wrangan_cli.engine.models.codes import save_code

    bar = progress("inverting", None)
    settings = inverter.settings
    timed = isinstance(settings, OptimisingSettings) and settings.seconds is not None

    def advance(at: Progress) -> None:
        bar.update(bar.task_ids[0], completed=at.done, total=at.total)
        if at.per_minute is not None:
            bar.update(bar.task_ids[0], rate=f"{at.per_minute:.1f} photos/min")

    with bar:
        for found in invert_many(inverter, [job.photo for job in todo], batch, advance):
            job = todo[found.index]
            try:
                if isinstance(found.code, Exception):
                    raise found.code
                code = described(found.code, job.photo, found.seconds, found.cost)
                save_code(job.code, code)
            except (WranganError, OSError) as error:
                results.failed(error, job.photo)
                continue
            if timed:
                after = code.info["distortion"]["after"]
                reached = ", ".join(f"{name} {value:.4f}" for name, value in after.items())
                steps = f"{code.info['steps']} steps in {found.seconds:.0f} s"
                say(f"wrangan: {job.photo.name}: {steps}: {reached}")
            results.wrote(
                job.code,
                photo=str(job.photo),
                skipped=False,
                seconds=found.seconds,
                distortion=code.info["distortion"],
            )
