"""`wrangan invert`: photographs → codes."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wrangan_cli.commands.panels import inversion_panels
from wrangan_cli.commands.shell import AsJson, Null, Results, by_main, inputs, progress, say, settings_options
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import UsageError, WranganError, is_out_of_memory
from wrangan_cli.engine.inversion.settings import InversionSettings

if TYPE_CHECKING:
    from torch import Tensor

    from wrangan_cli.engine.inversion.folder import Job
    from wrangan_cli.engine.inversion.inverter import Inverter
    from wrangan_cli.engine.models.codes import Code
    from wrangan_cli.engine.models.folder import Model


@settings_options(InversionSettings, panels=inversion_panels(list(InversionSettings.__dataclass_fields__)))
def invert(
    settings: InversionSettings,
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Aligned photographs or folders; none or -: paths on stdin.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the codes, one .st for each photograph.")] = Path(
        "codes"
    ),
    model: Annotated[str, typer.Option(help="Bundled model's name, or a model folder.")] = DEFAULT_MODEL,
    batch: Annotated[int, typer.Option(min=1, help="Photographs inverted at a time.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    cuda_graph: Annotated[
        bool,
        typer.Option(
            "--cuda-graph", help="Replay one captured step (wrangan, weight-tuning by Adam, no --stop-at)."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Invert again what is done already.")
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Invert photographs into (w, ε); paths of the codes go to stdout, one a line.

    Photographs whose code stands in the output folder are skipped, so an interrupted
    run goes on where it stopped. Under torchrun each process inverts its share.
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
    """Make the codes that are not there yet; of several processes each its share (all must call this)."""
    from wrangan_cli.engine.base.distributed import own_share
    from wrangan_cli.engine.inversion.inverter import Inverter

    inverter = cache(lambda: Inverter.load(loaded(), settings, cuda_graph))

    def whole_list() -> "list[Job]":
        todo = _todo(photos, out, overwrite, settings, loaded, results)
        if todo:
            inverter()  # so that what is wrong with it is said once
        return todo

    # One process looks at the whole list, before any code is written: all see the same work.
    share = own_share(by_main(whole_list))
    if share:
        _invert_all(inverter(), share, batch, results)


def _todo(
    photos: list[Path] | None,
    out: Path,
    overwrite: bool,
    settings: InversionSettings,
    model: "Callable[[], Model]",
    results: Results,
) -> "list[Job]":
    """The photographs that have no code yet; what has one, and what cannot be done, is said."""
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
        # Said now, and not after the first hour; the folder is made with the first code.
        check_can_be_made(out)
    return todo


def _invert_all(inverter: "Inverter", todo: "Sequence[Job]", batch: int, results: Results) -> None:
    from wrangan_cli.engine.inversion.folder import described
    from wrangan_cli.engine.models.codes import save_code

    for job, code, seconds, cost in _inverted(inverter, todo, batch, results):
        try:
            if isinstance(code, WranganError):
                raise code
            code = described(code, job, seconds, cost)
            save_code(job.code, code)
            if inverter.settings.seconds is not None:
                after = code.info["distortion"]["after"]
                reached = ", ".join(f"{name} {value:.4f}" for name, value in after.items())
                say(f"wrangan: {job.photo.name}: {code.info['steps']} steps in {seconds:.0f} s: {reached}")
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


def _inverted(
    inverter: "Inverter", todo: "Sequence[Job]", batch: int, results: Results
) -> "Iterator[tuple[Job, Code | WranganError, float, dict[str, Any]]]":
    """Each job with its code, the seconds it took, and what else it cost (batch, peak memory).

    Where the memory does not suffice, half as many go on.
    """
    import time

    import torch

    from wrangan_cli.engine.base.peak_memory import peak_memory, reset_peak

    steps = max(1, inverter.settings.total_steps)
    waiting = deque(todo)
    bar = progress("inverting", len(todo) * steps)
    task, done_steps = bar.task_ids[0], 0
    with bar:
        while waiting:
            jobs, images = _read(waiting, batch, inverter, results)
            if not jobs:
                continue
            fresh = reset_peak(inverter.model.device)
            started = time.perf_counter()
            try:
                photographs = torch.stack(images)
                planned = inverter.within(photographs)
                steps = max(1, planned.settings.total_steps)
                bar.update(task, total=done_steps + (len(waiting) + len(jobs)) * steps)

                def on_step(
                    step: int,
                    count: int = len(jobs),
                    base: int = done_steps,
                    began: float = started,
                    whole: int = steps,
                ) -> None:
                    rate = step * count / (time.perf_counter() - began) / whole
                    bar.update(task, completed=base + step * count, rate=f"{rate * 60:.1f} photos/min")

                codes = planned.invert(photographs, on_step)
            except (RuntimeError, MemoryError) as error:
                if len(jobs) == 1 or not is_out_of_memory(error):
                    raise
                codes = None
            if codes is None:
                # Outside of `except`: the error held on to what the attempt had in memory.
                batch = len(jobs) // 2
                waiting.extendleft(reversed(jobs))
                say(f"wrangan: out of memory with {len(jobs)} photographs at a time: going on with {batch}")
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            seconds = (time.perf_counter() - started) / len(jobs)
            cost = {"batch": len(jobs), **peak_memory(inverter.model.device, fresh)}
            done_steps += steps * len(jobs)
            bar.update(task, completed=done_steps)
            for job, code in zip(jobs, codes, strict=True):
                yield job, code, seconds, cost


def _read(
    waiting: "deque[Job]", batch: int, inverter: "Inverter", results: Results
) -> "tuple[list[Job], list[Tensor]]":
    """The next photographs of one size, `batch` at most; what cannot be read is said."""

    jobs: list[Job] = []
    images: list[Tensor] = []
    for _ in range(min(batch, len(waiting))):
        job = waiting.popleft()
        try:
            image = inverter.load_photo(job.photo)
        except (WranganError, OSError) as error:
            results.failed(error, job.photo)
            continue
        if images and image.shape != images[0].shape:
            waiting.appendleft(job)
            break
        images.append(image)
        jobs.append(job)
    return jobs, images
