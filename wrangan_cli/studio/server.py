"""The page's server, from its beginning to its end. Gradio is first imported here, and may call nobody."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from wrangan_cli.engine.base.errors import UsageError, WranganError, cause_of
from wrangan_cli.engine.base.installation import install_line
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.studio.session import Sessions

QUIET = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_SHARE": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_RUN_HISTORY": "False",
}
"""Environment by which Gradio calls nobody, and keeps nothing of what is done."""


@contextlib.contextmanager
def serving(model: Callable[[], Model], given: list[Path], host: str, port: int) -> Iterator[str]:
    """The page at work; yields its address. Afterwards nothing of its tabs is left on the disk.

    model: loads it, once the port is known to be free. Raises WranganError without Gradio, UsageError for an
    address that cannot be listened on.
    """
    _check_free(host, port)
    with Sessions() as sessions:
        # Where uploads arrive, before a tab takes them.
        os.environ |= {**QUIET, "GRADIO_TEMP_DIR": str(sessions.root / "uploads")}
        try:
            from wrangan_cli.studio import page
        except ImportError as error:
            if error.name is None or error.name.split(".")[0] != "gradio":
                raise
            raise WranganError(f"the studio needs Gradio: {install_line('studio')}") from error
        from wrangan_cli.studio.work import Work

        made = page.build(Work(model()), sessions, given)
        try:
            yield page.launch(made, sessions, host, port)
        finally:
            made.close(verbose=False)


def _check_free(host: str, port: int) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise UsageError(f"{host}:{port}: {cause_of(error)} (give another --port)") from error
