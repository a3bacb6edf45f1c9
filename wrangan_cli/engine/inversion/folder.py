"""Which photograph becomes which code, and which codes exist already."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wrangan_cli.engine.base.errors import FileError, WranganError
from wrangan_cli.engine.base.files import sha256
from wrangan_cli.engine.base.names import existing_form, same_file_key, same_name
from wrangan_cli.engine.inversion.settings import InversionSettings
from wrangan_cli.engine.inversion.trained import network_files
from wrangan_cli.engine.models.codes import IMPORTED, SUFFIX, Code, load_code
from wrangan_cli.engine.models.folder import Model


@dataclass(frozen=True)
class Job:
    """One photograph and the code to make of it."""

    photo: Path
    code: Path


def plan(photos: Iterable[Path], out: Path) -> tuple[list[Job], list[WranganError]]:
    """`a.jpg` → `out/a.st`. If two photographs would write the same code, the first is
    kept, and the other becomes an error that names both."""
    jobs: dict[Path, Job] = {}
    clashes: list[WranganError] = []
    for photo in photos:
        code = existing_form(out / f"{photo.stem}{SUFFIX}")
        key = same_file_key(code)
        if key in jobs:
            if jobs[key].photo.absolute() != photo.absolute():
                first = jobs[key].photo
                alike = first.stem != photo.stem and same_name(first.stem) == same_name(photo.stem)
                only = ", whose name differs in its Unicode form only," if alike else ""
                clashes.append(FileError(photo, f"would write {code}, as {first}{only} does; not inverted"))
            continue
        jobs[key] = Job(photo, code)
    return list(jobs.values()), clashes


def stored_code(job: Job, model: Model, settings: InversionSettings) -> Code | WranganError | None:
    """The finished code of a job, None if there is none, or an error if the file holds something else.

    settings: as returned by `resolved`. A code of another model, encoder or photograph, or made with other
    settings, is not overwritten silently: the error says what differs. A recorded setting that the method
    does not have is ignored (earlier versions recorded those of all methods). A setting missing from the
    record is newer than the code, which was made with its default.
    """
    if not job.code.exists():
        return None
    try:
        code = load_code(job.code, model)
    except FileError as error:
        return FileError(job.code, f"{error.cause}; use --overwrite to invert again")
    if code.info.get("method") == IMPORTED:  # its record has no settings, so defaults would be assumed
        cause = "imported from another tool; use --overwrite to replace it by an inversion"
        return FileError(job.code, cause)
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    recorded = {**defaults, **settings.FALLBACK, **code.info.get("settings", {})}
    if "pti_loss_side" not in code.info.get("settings", {}) and model.resolution > recorded["loss_side"]:
        recorded["pti_loss_side"] = recorded["loss_side"]  # they used to be one setting
    for name in settings.relevant:
        there, wanted = recorded[name], getattr(settings, name)
        if there != wanted:
            cause = f"made with {name} {there!r}, not {wanted!r}; use --overwrite to invert again"
            return FileError(job.code, cause)
    networks = code.info.get("networks")
    if isinstance(networks, dict):  # older codes do not record it, and are accepted
        for name, digest in network_files(model, settings).items():
            if networks.get(name) != digest:
                cause = f"made with another {name} than {model.name} has now"
                return FileError(job.code, f"{cause}; use --overwrite to invert again")
    if job.photo.is_file() and code.info.get("source_sha256") != sha256(job.photo):
        cause = f"made from another photograph than {job.photo}; use --overwrite to invert again"
        return FileError(job.code, cause)
    return code


def described(code: Code, photo: Path | None, seconds: float, cost: Mapping[str, Any]) -> Code:
    """The code with its photograph (if that is a file), seconds and other costs added to the record."""
    source = {} if photo is None else {"source": photo.name, "source_sha256": sha256(photo)}
    about = {**source, "seconds": round(seconds, 3), **cost}
    return dataclasses.replace(code, info={**code.info, **about})
