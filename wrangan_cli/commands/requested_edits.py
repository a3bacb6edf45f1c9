"""The edits requested on the command line."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wrangan_cli.commands.shell import say
from wrangan_cli.engine.base.errors import FileError

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.directions import Direction, Move
    from wrangan_cli.engine.editing.sweeps import Span, Sweep
    from wrangan_cli.engine.models.folder import Model


class BadDirections(FileError):
    """The file given as --directions cannot be used."""


class RequestedEdits:
    """The requested edits, looked up once per model."""

    def __init__(
        self, names: list[str], strengths: "list[float | Span]", file: Path | None, one_model: bool
    ) -> None:
        self._one_model = one_model
        self._names, self._strengths, self._file = names, strengths, file
        self._found: dict[str, list[Move | Sweep]] = {}

    def of(self, model: "Model") -> "list[Move | Sweep]":
        from wrangan_cli.engine.editing.sweeps import make_edits

        if model.sha256 not in self._found:
            known = self._known(model)
            where = self._file or model.name
            edits = make_edits(known, self._names, self._strengths, where)
            for edit in edits:
                if edit.outside_range:
                    low, high = edit.direction.range
                    say(f"wrangan: {edit.label} is outside the sensible range {low:g}…{high:g}")
            self._found[model.sha256] = edits
        return self._found[model.sha256]

    def _known(self, model: "Model") -> "dict[str, Direction]":
        from wrangan_cli.engine.editing.directions import load_directions

        try:
            return load_directions(model, self._file)
        except FileError as error:
            # The file may fit later codes, of other models; a broken file fits none.
            fits_others = error.cause.startswith("made for another model") and not self._one_model
            if self._file is None or error.path != self._file or fits_others:
                raise
            # The error does not concern a single code: it is reported once, and nothing is edited.
            raise BadDirections(error.path, error.cause) from error

    @staticmethod
    def label(edits: "Sequence[Move | Sweep]") -> str:
        """The part of a file name that names the edits: `smile+3-age-2`."""
        return "-".join(edit.label for edit in edits)
