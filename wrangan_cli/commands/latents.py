"""`wrangan import-latents` and `export-latents`: convert other tools' latents to codes, and back."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from wrangan_cli.commands.code_inputs import CodeModels, code_files
from wrangan_cli.commands.shell import AsJson, Null, Results, inputs, say
from wrangan_cli.engine.base.choices import LatentFormat, LatentSpace
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.base.errors import FileError, UsageError, WranganError

if TYPE_CHECKING:
    from wrangan_cli.engine.checkpoints.latents import Latent
    from wrangan_cli.engine.models.codes import Code
    from wrangan_cli.engine.models.folder import Model


def import_latents(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Latents (.npz, .npy, .pt, .pth) or folders of them; without any, or with -, read paths "
            "from stdin."
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the codes, one .st per latent; or, for a single latent, a .st file."),
    ] = Path("codes"),
    model: Annotated[
        str, typer.Option(help="The model of the latents: name of a bundled model, or a model folder.")
    ] = DEFAULT_MODEL,
    photo: Annotated[
        Path | None,
        typer.Option(
            help="The aligned photograph of a single latent, or a folder of photographs named as the latents."
        ),
    ] = None,
    space: Annotated[
        LatentSpace,
        typer.Option(
            help="Space of the latents: w (W or W+, by the shape), or z, which the model maps to w."
        ),
    ] = "w",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps …")] = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace codes that are already in the output folder.")
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Convert other tools' latents to codes, and print the paths of the codes, one per line.

    Reads the files of NVIDIA's and rosinality's projectors, PTI, e4e, ReStyle and HyperStyle, and plain
    arrays; nothing in them is executed.
    """
    from wrangan_cli.engine.base.files import sha256
    from wrangan_cli.engine.base.runtime import resolve_device
    from wrangan_cli.engine.checkpoints.latents import warn_far_from_w, warn_unused_noise
    from wrangan_cli.engine.data.photo_files import images_by_stem
    from wrangan_cli.engine.library import load_model
    from wrangan_cli.engine.models.codes import SUFFIX

    place = resolve_device(device)
    results = Results(as_json, null)
    photos = None if photo is None else images_by_stem(photo)
    loaded = load_model(model, place)
    read = _read(inputs(files), loaded, space, results)
    count = sum(len(items) for items in read.values())
    if out.suffix == SUFFIX and not out.is_dir() and count > 1:
        raise UsageError(f"{out} is one code, but there are {count} latents: give a folder as --out")
    if space == "w":
        warn_far_from_w(read, loaded)
    warn_unused_noise(read, loaded)
    # One latent and one photograph belong together, whatever their names.
    alone = photo if photo is not None and not photo.is_dir() and count == 1 else None
    importer = _Importer(loaded, space, out, photos, alone, overwrite, results)
    for path, items in read.items():
        digest = sha256(path)
        for item in items:
            try:
                importer.write(path, digest, item)
            except (WranganError, OSError) as error:
                results.failed(error, path)
    if importer.without_photo:
        from wrangan_cli.engine.checkpoints.records import listed

        names = listed(importer.without_photo)
        say(f"wrangan: no photograph of that name in {photo}: {names} (their codes are written without one)")
    results.finish()


def _read(
    paths: Iterable[Path], model: "Model", space: LatentSpace, results: Results
) -> "dict[Path, list[Latent]]":
    """The latents of each readable file, each file once; the others are reported."""
    from wrangan_cli.engine.checkpoints.latents import find_latents, read_latents

    read: dict[Path, list[Latent]] = {}
    for path in paths:
        try:
            files = find_latents(path)
        except (WranganError, OSError) as error:
            results.failed(error, path)
            continue
        for file in files:
            try:
                read[file] = read_latents(file, model, space)
            except (WranganError, OSError) as error:
                results.failed(error, file)
    return read


class _Importer:
    """Writes the code of each latent once."""

    def __init__(
        self,
        model: "Model",
        space: LatentSpace,
        out: Path,
        photos: "dict[str, list[Path]] | None",
        alone: Path | None,
        overwrite: bool,
        results: Results,
    ) -> None:
        self._model, self._space, self._out = model, space, out
        self._photos, self._alone = photos, alone
        self._overwrite, self._results = overwrite, results
        self._written: dict[Path, Path] = {}
        self.without_photo: list[str] = []
        """Names of the latents for which there is no photograph."""

    def write(self, path: Path, digest: str, item: "Latent") -> None:
        """Write the code of one latent of `path`, whose sha256 is `digest`; FileError if that fails."""
        from wrangan_cli.engine.base.names import same_file_key
        from wrangan_cli.engine.checkpoints.latents import code_of, photograph_of
        from wrangan_cli.engine.data.photographs import load_photograph
        from wrangan_cli.engine.models.codes import save_code

        target = self._target(item)
        key = same_file_key(target)
        if key in self._written:
            raise FileError(path, f"not imported: {target} is already the code of {self._written[key]}")
        photo = self._alone or (None if self._photos is None else photograph_of(item, self._photos))
        if photo is not None:
            load_photograph(photo, self._model.resolution)  # report errors now, not during evaluation
        code = code_of(item, path, digest, self._model, self._space, photo)
        skipped = target.exists() and not self._overwrite
        if skipped:
            _check_same(target, code)
        else:
            save_code(target, code)
        self._written[key] = path
        if photo is None and self._photos is not None:
            self.without_photo.append(item.name)
        self._results.wrote(
            target,
            file=str(path),
            key=item.key or None,
            shape=list(code.w.shape),
            photo=None if photo is None else str(photo),
            skipped=skipped,
        )

    def _target(self, item: "Latent") -> Path:
        from wrangan_cli.engine.base.names import existing_form
        from wrangan_cli.engine.models.codes import SUFFIX

        if self._out.suffix == SUFFIX and not self._out.is_dir():
            return self._out
        # `evaluate` finds the photograph of a code by its name.
        name = item.name if self._alone is None else self._alone.stem
        return existing_form(self._out / f"{name}{SUFFIX}")


def _check_same(target: Path, code: "Code") -> None:
    """FileError unless the file holds exactly this code."""
    from wrangan_cli.engine.models.codes import holds_code

    if not holds_code(target, code):
        raise FileError(target, "not overwritten: its content differs; use --overwrite to replace it")


def export_latents(
    codes: Annotated[
        list[Path] | None,
        typer.Argument(help="Codes (.st) or folders of them; without any, or with -, read paths from stdin."),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the files, one per code; or, for a single code, a .npz, .npy or .pt file."
        ),
    ] = Path("latents"),
    to: Annotated[
        LatentFormat | None,
        typer.Option(help="Format; default: that of the suffix of --out, else npz."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Name of a bundled model, or a model folder; default: the model that the code names."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files that are already in the output folder.")
    ] = False,
    as_json: AsJson = False,
    null: Null = False,
) -> None:
    """Write the w of codes for other tools, one row per layer; offsets of weights are left out.

    npz: `w` of shape (1, L, C), as NVIDIA's projector writes. npy: (L, C). pt: a tensor (1, L, C).
    """
    import torch

    from wrangan_cli.engine.checkpoints.latents import encoded, left_out, write_latent
    from wrangan_cli.engine.checkpoints.records import listed

    one_file = out.suffix in (".npz", ".npy", ".pt") and not out.is_dir()
    by_suffix = cast("LatentFormat", out.suffix[1:]) if one_file else None
    if by_suffix and to not in (None, by_suffix):
        raise UsageError(f"{out} is not a .{to} file: leave out --to, or give another --out")
    form: LatentFormat = to or by_suffix or "npz"
    files = list(code_files(inputs(codes)))
    if one_file and len(files) > 1:
        raise UsageError(f"{out} is one file, but there are {len(files)} codes: give a folder as --out")
    models = CodeModels(model, torch.device("cpu"))
    results = Results(as_json, null)
    written: dict[Path, Path] = {}
    lost: dict[str, list[str]] = {}
    for path in files:
        if isinstance(path, FileError):
            results.failed(path)
            continue
        target = out if one_file else out / f"{path.stem}.{form}"
        try:
            code, loaded = models.load(path)
            content = encoded(code.w, loaded.generator.config.num_latents, form)
            skipped = _already_written(target, content, path, written, overwrite)
            if not skipped:
                write_latent(target, content)
        except UsageError:
            raise
        except (WranganError, OSError) as error:
            results.failed(error, path)
            continue
        lacks = left_out(code)
        for what in lacks:
            lost.setdefault(what, []).append(path.name)
        results.wrote(target, code=str(path), format=form, left_out=lacks, skipped=skipped)
    if lost:
        parts = "; ".join(f"{what} of {listed(names)}" for what, names in lost.items())
        say(f"wrangan: left out, so images rendered by other tools will differ: {parts}")
    results.finish()


def _already_written(
    target: Path, content: bytes, path: Path, written: dict[Path, Path], overwrite: bool
) -> bool:
    """Whether the target has this content already; FileError if it differs or belongs to another code."""
    from wrangan_cli.engine.base.names import same_file_key

    key = same_file_key(target)
    if key in written:
        raise FileError(path, f"not exported: {target} is already the latent of {written[key]}")
    same = target.is_file() and target.read_bytes() == content
    if target.exists() and not same and not overwrite:
        raise FileError(target, "not overwritten: its content differs; use --overwrite to replace it")
    written[key] = path
    return same
