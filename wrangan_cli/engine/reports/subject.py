"""The subject of a report: a model, photographs, the codes of each method, and where results go."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor

from wrangan_cli.engine.base.errors import WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.data.photographs import load_photograph
from wrangan_cli.engine.editing.directions import Direction, find_direction, load_directions
from wrangan_cli.engine.editing.settings import KNOWN_ATTRIBUTES
from wrangan_cli.engine.inversion.folder import Job, plan, stored_code
from wrangan_cli.engine.inversion.inverter import resolved
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.metrics.pairs import Pair
from wrangan_cli.engine.metrics.samples import Reference
from wrangan_cli.engine.models.attributes import FILE_NAME as ATTRIBUTES
from wrangan_cli.engine.models.codes import Code, load_code
from wrangan_cli.engine.models.folder import Model
from wrangan_cli.engine.reports.cache import Cache
from wrangan_cli.engine.reports.settings import ReportSettings, split_names

FIRST_DIRECTIONS = 5

Track = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]
"""(task, total) → a context that yields a function of the number done: a progress bar."""


@contextlib.contextmanager
def untracked(_what: str, _total: int) -> Iterator[Callable[[int], None]]:
    """No progress bar."""
    yield lambda _done: None


@dataclass
class Subject:
    """Everything that the measurements and figures of one report need. Problems are collected, not raised."""

    model: Model
    photos: Sequence[Path]
    """The photographs that can have codes: of two with the same stem, only the first."""
    codes: Mapping[str, Path]
    """Method → folder of its codes, in the order of the tables."""
    wanted: Mapping[str, InversionSettings]
    """Method → the settings with which its codes must have been made."""
    out: Path
    settings: ReportSettings
    reference: Callable[[], Reference]
    """The real images of Tables 3 and 4; WranganError if there are none."""
    inception: Callable[[], Callable[[Tensor], Tensor]]
    """The network of FID and KID; WranganError if it cannot be loaded."""
    batch: int = 8
    track: Track = untracked
    failures: list[WranganError | OSError] = field(default_factory=list)
    """Inputs that could not be used, each once."""
    remarks: list[str] = field(default_factory=list)
    """What was left out on request, or because the model lacks it."""
    reported: list[str] = field(default_factory=list)
    """Failures of the inversions that have already been printed, one line each."""

    @cached_property
    def cache(self) -> Cache:
        """The results of earlier runs."""
        return Cache(self.out / "cache")

    @cached_property
    def jobs(self) -> dict[str, list[Job]]:
        """Method → photographs with codes that can be read and rendered; the others become failures."""
        return {method: self._jobs_of(method, folder) for method, folder in self.codes.items()}

    def _jobs_of(self, method: str, folder: Path) -> list[Job]:
        found = []
        settings = resolved(self.wanted[method], self.model)
        for job in plan(self.photos, folder)[0]:
            # As in inversion, a code with other settings or of another photograph does not count.
            code = stored_code(job, self.model, settings)
            if isinstance(code, Code):
                found.append(job)
            elif code is not None:
                self.failures.append(code)
        return found

    def code(self, job: Job) -> Code:
        """The code of a photograph."""
        return load_code(job.code, self.model)

    @property
    def size(self) -> int:
        """The setting `size`, the same for all methods."""
        return next((settings.size for settings in self.wanted.values()), 0)

    @property
    def metric_side_key(self) -> dict[str, int]:
        """The part of a cache key for the setting `metric_side`; empty if it has no effect."""
        side = self.settings.metric_side
        return {"metric_side": side} if 0 < side < self.model.resolution else {}

    def load_photo(self, path: Path) -> Tensor:
        """A photograph as the methods see it: (3, S, S) in [-1, 1]. Raises FileError."""
        return load_photograph(path, self.model.resolution, self.size)

    def pair(self, job: Job) -> Pair:
        """The job in the form that the metrics expect."""
        return Pair(job.photo, job.code)

    def sha(self, path: Path) -> str:
        """The sha256 of a photograph or code; each file is read once."""
        if path not in self._shas:
            self._shas[path] = sha256(path)
        return self._shas[path]

    _shas: dict[Path, str] = field(default_factory=dict, repr=False)

    @cached_property
    def shared_stems(self) -> list[str]:
        """Photographs for which every method has a code, in order."""
        stems = [{job.photo.stem for job in jobs} for jobs in self.jobs.values()]
        return [photo.stem for photo in self.photos if all(photo.stem in some for some in stems)]

    @cached_property
    def directions(self) -> list[Direction]:
        """The directions named in the settings, or the model's first ones, if it has any."""
        known = load_directions(self.model)
        names = split_names(self.settings.directions)
        if names:
            return [find_direction(known, name, self.model.name) for name in names]
        return list(known.values())[:FIRST_DIRECTIONS]

    @property
    def of_faces(self) -> bool:
        """Whether the directions of the edits are of faces."""
        return any(direction.name in KNOWN_ATTRIBUTES for direction in self.directions)

    @property
    def has_attributes(self) -> bool:
        """Whether the model has an attribute net."""
        return self.model.companion(ATTRIBUTES) is not None

    def leave_out(self, what: str, why: WranganError | str) -> str:
        """Record that something is missing from the report; returns the line about it."""
        line = f"{what}: left out ({why})"
        if line not in self.remarks:
            self.remarks.append(line)
        return line
