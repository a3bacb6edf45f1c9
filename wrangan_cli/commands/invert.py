"""`wrangan invert`: photographs → codes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.shell import Results, inputs, progress, settings_options
from wrangan_cli.engine.errors import UsageError, WranganError
from wrangan_cli.engine.inversion.settings import InversionSettings

if TYPE_CHECKING:
    from torch import Tensor

    from wrangan_cli.engine.inversion.loop import Inverter


@settings_options(InversionSettings)
def invert(
    settings: InversionSettings,
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Aligned photographs or folders; none or -: paths on stdin.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the codes, one .st for each photograph.")] = Path(
        "codes"
    ),
    model: Annotated[str, typer.Option(help="Bundled model's name, or a model folder.")] = "faces-64",
    batch: Annotated[int, typer.Option(min=1, help="Photographs inverted at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Invert again what is done already.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Invert photographs into (w, ε); paths of the codes go to stdout, one a line.

    Photographs whose code stands in the output folder are skipped, so an interrupted
    run goes on where it stopped.
    """
    from wrangan_cli.engine.images import find_images
    from wrangan_cli.engine.inversion.folder import Job, plan, stored_code
    from wrangan_cli.engine.inversion.loop import Inverter, resolved
    from wrangan_cli.engine.model_folder import load_model
    from wrangan_cli.engine.runtime import resolve_device

    results = Results(as_json)
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
    loaded = load_model(model, resolve_device(device))
    todo: list[Job] = []
    for job in jobs:
        done = None if overwrite else stored_code(job, loaded, resolved(settings, loaded))
        if isinstance(done, WranganError):
            results.failed(done, job.code)
        elif done is not None:
            results.wrote(
                job.code, photo=str(job.photo), skipped=True, distortion=done.info.get("distortion")
            )
        else:
            todo.append(job)
    if todo:
        out.mkdir(parents=True, exist_ok=True)
        _invert_all(Inverter.load(loaded, settings), todo, batch, results)
    results.finish()


def _invert_all(inverter: "Inverter", todo: list, batch: int, results: Results) -> None:
    import time

    import torch

    from wrangan_cli.engine.codes import save_code
    from wrangan_cli.engine.images import load_image
    from wrangan_cli.engine.inversion.folder import described

    steps = max(1, inverter.settings.steps)
    bar = progress("inverting", len(todo) * steps)
    task, done_steps = bar.task_ids[0], 0
    with bar:
        for first in range(0, len(todo), batch):
            images: list[Tensor] = []
            jobs = []
            for job in todo[first : first + batch]:
                try:
                    images.append(load_image(job.photo, inverter.model.resolution))
                    jobs.append(job)
                except (WranganError, OSError) as error:
                    results.failed(error, job.photo)
            if not jobs:
                continue
            started = time.perf_counter()

            def on_step(
                step: int, count: int = len(jobs), base: int = done_steps, began: float = started
            ) -> None:
                rate = step * count / (time.perf_counter() - began) / steps
                bar.update(task, completed=base + step * count, rate=f"{rate * 60:.1f} photos/min")

            codes = inverter.invert(torch.stack(images), on_step)
            seconds = (time.perf_counter() - started) / len(jobs)
            done_steps += steps * len(jobs)
            bar.update(task, completed=done_steps)
            for job, code in zip(jobs, codes, strict=True):
                if isinstance(code, WranganError):
                    results.failed(code, job.photo)
                    continue
                try:
                    code = described(code, job, seconds, len(jobs))
                    save_code(job.code, code)
                except (WranganError, OSError) as error:
                    results.failed(error, job.photo)
                    continue
                results.wrote(
                    job.code,
                    photo=str(job.photo),
                    skipped=False,
                    seconds=seconds,
                    distortion=code.info["distortion"],
                )
