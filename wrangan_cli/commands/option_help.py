"""The text of help pages: options made from dataclasses, their types and the docstrings of their fields."""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

import typer

from wrangan_cli.engine.base.choices import choices_in

LABEL_WIDTH, WIDEST_CHOICE = 13, 15
"""Maximum number of characters per line of choices in the help, so that the column leaves room for the text,
and of a choice that is listed there."""


def option_helps(kinds: Mapping[str, type], panel_of: Mapping[str, str]) -> dict[str, str]:
    """The help of each option: the docstring of its field.

    If only some kinds have the field, and its heading does not name these, the help names them. If
    docstrings differ between kinds, each is given with the kinds that it describes.
    """
    having: dict[str, dict[str, list[str]]] = {}
    docstrings = {kind: field_docstrings(kind) for kind in dict.fromkeys(kinds.values())}
    for key, kind in kinds.items():
        for name, text in docstrings[kind].items():
            having.setdefault(name, {}).setdefault(text, []).append(key)
    helps = {}
    for name, texts in having.items():
        named = {text: ", ".join(keys) for text, keys in texts.items()}
        if len(texts) > 1:
            helps[name] = " ".join(f"{keys}: {text}" for text, keys in named.items())
            continue
        ((text, keys),) = named.items()
        known = len(texts[text]) == len(kinds) or keys in panel_of.get(name, "")
        helps[name] = text if known else f"{text} (Only {keys}.)"
    return helps


def option_types(kinds: Mapping[str, type]) -> dict[str, Any]:
    """The type of each option; if classes have different choices, the union of these."""
    having: dict[str, list[Any]] = {}
    for kind in dict.fromkeys(kinds.values()):
        for field in dataclasses.fields(kind):
            having.setdefault(field.name, []).append(field.type)
    joined = {}
    for name, (first, *others) in having.items():
        joined[name] = first
        if any(other != first for other in others) and choices_in(first):
            choices = [choice for one in (first, *others) for choice in choices_in(one)]
            joined[name] = Literal[tuple(dict.fromkeys(choices))]
    return joined


def choices_label(annotation: Any) -> str | None:
    """The choices of an option, which the help shows in place of its type, without None and "" (unset).

    None: Typer's default label suffices, as there are no choices or they fit on one line. If a choice is
    wider than WIDEST_CHOICE, only `<choice>`: then the text has to name them.
    """
    known = choices_in(annotation)
    names = [str(choice) for choice in known if choice]
    label = f"<{'|'.join(names)}>"
    if not names or (len(label) <= LABEL_WIDTH and "" not in known):
        return None
    if max(map(len, names)) > WIDEST_CHOICE:
        return "<choice>"
    lines = [""]
    for part in label.replace("|", "| ").split():
        if lines[-1] and len(lines[-1] + part) > LABEL_WIDTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def flow_help(app: typer.Typer) -> None:
    """Reflow the help of commands to the page: Typer keeps the line breaks after the first paragraph."""
    for info in app.registered_commands:
        paragraphs = (inspect.getdoc(info.callback) or "").split("\n\n")
        info.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            flow_help(group.typer_instance)


def field_docstrings(cls: type) -> dict[str, str]:
    """The docstring under each annotated field of the class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _docstrings_of(base)
    return found


@functools.cache
def _docstrings_of(cls: type) -> dict[str, str]:
    """The docstrings of the fields in the body of the class itself."""
    found: dict[str, str] = {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node, after in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            found[node.target.id] = " ".join(after.value.value.split())
    return found
