"""The command lines that make what the page shows."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.inversion.method_settings import inversion_settings
from wrangan_cli.studio.session import Crop, Session, Subject

if TYPE_CHECKING:
    from wrangan_cli.engine.editing.directions import Move
    from wrangan_cli.engine.inversion.settings import InversionSettings


def command(*words: object) -> str:
    """`wrangan` and its words, quoted as a shell wants them."""
    return shlex.join(["wrangan", *map(str, words)])


def of_model(name: str) -> list[str]:
    """The option that names a model, where it is not the default."""
    return [] if name == DEFAULT_MODEL else ["--model", name]


def of_settings(settings: "InversionSettings") -> list[str]:
    """The options of settings that are not their defaults."""
    words = [] if settings.method == inversion_settings().method else ["--method", settings.method]
    for one in fields(settings):
        value = getattr(settings, one.name)
        if one.name != "method" and value != one.default:
            option = "--" + one.name.replace("_", "-")
            words += (
                [option]
                if value is True
                else [option, f"{value:g}" if isinstance(value, float) else str(value)]
            )
    return words


def inverted(
    session: Session, crop: Crop, model: str, settings: "InversionSettings", folder: str
) -> tuple[tuple[str, ...], str]:
    """The lines from a photograph to its code in `folder`, and the code's file."""
    lines, picture = [], session.called(crop.picture)
    if crop.transform is not None:
        lines.append(command("align", session.called(crop.photo), "--out", "faces"))
        picture = f"faces/{crop.picture.name}"
    lines.append(command("invert", picture, "--out", folder, *of_model(model), *of_settings(settings)))
    return tuple(lines), f"{folder}/{crop.picture.stem}.st"


def edited(
    subject: Subject, moves: "Sequence[Move]", imported: Mapping[str, Path], model: str, out: str
) -> list[str]:
    """The lines that draw an edit of a code into the file `out`; directions of files come after the others,
    each file's in a line of its own, since `edit` reads those of one file."""
    groups: dict[Path | None, list[Move]] = {}
    for move in moves:
        groups.setdefault(imported.get(move.direction.name), []).append(move)
    lines, code = [], subject.file or f"{subject.name}.st"
    for number, (file, some) in enumerate(groups.items(), start=1):
        last = number == len(groups)
        target = out if last else f"{Path(out).stem}-{number}.png"
        words: list[object] = [code, *of_moves(some)]
        if file is not None and file.suffix != ".safetensors":
            own = f"{file.stem}.safetensors"
            lines.append(
                command(
                    "directions", "import", file.name, "--name", file.stem, "--out", own, *of_model(model)
                )
            )
            words += ["--directions", own]
        elif file is not None:
            words += ["--directions", file.name]
        words += [*of_model(model), "--out", target, *([] if last else ["--save-code"])]
        lines.append(command("edit", *words))
        code = f"{Path(target).stem}.st"
    return lines


def of_moves(moves: "Sequence[Move]") -> list[str]:
    """Directions and strengths as options; `=`, so that no negative number is taken for an option."""
    words: list[str] = []
    for move in moves:
        words += ["--direction", move.direction.name, f"--strength={move.strength:g}"]
    return words


def pasted(session: Session, crop: Crop, face: str, out: str, feather: float, keep_detail: bool) -> str:
    """The line that puts the edited face back into its photograph."""
    assert crop.transform is not None
    words: list[object] = [face, "--photo", session.called(crop.photo)]
    words += ["--transform", f"faces/{crop.transform.name}", "--out", out]
    words += [] if feather == 0.1 else ["--feather", f"{feather:g}"]
    return command("paste", *words, *(["--keep-detail"] if keep_detail else []))
