"""`wrangan studio`: faces edited by hand, on a page of this machine."""

from pathlib import Path
from typing import Annotated

import typer

from wrangan_cli.commands.shell import say
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import FileError


def studio(
    given: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PHOTO|CODE]...", help="Photographs, codes (.st) or folders of codes to begin with."
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled model's name, or a model folder.")] = DEFAULT_MODEL,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page.")] = 7860,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in, without a password.")
    ] = "127.0.0.1",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
) -> None:
    """Edit faces by hand in the browser: drop in a photograph, pick a face, invert it, move sliders.

    Prints the page's address; Ctrl-C ends the program. Photographs stay on this machine and are deleted when
    their tab is closed. Needs the optional part "studio" (see `wrangan doctor`).
    """
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.codes import find_codes
    from wrangan_cli.studio.server import serving

    files: list[Path] = []
    for path in given or []:
        if not path.exists():
            raise FileError(path, "no such file")
        files += find_codes(path) if path.is_dir() else [path]
    with serving(lambda: load_model(model, resolve_device(device)), files, host, port) as address:
        print(address, flush=True)
        say("wrangan: the page is open; Ctrl-C ends it")
        _wait()


def _wait() -> None:
    import signal
    import time

    # A plain `kill` also ends it in order: what the tabs have is removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        say("wrangan: closed")
