"""The help of options that are made from dataclasses: the docstrings under their fields."""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Mapping


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
