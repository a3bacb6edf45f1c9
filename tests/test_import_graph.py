"""Imports run one way: commands → engine → ops → kernels, and in the engine from room to lower room."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import wrangan_cli

PACKAGE = Path(wrangan_cli.__file__).parent
ROOMS = (
    *("base", "ops", "data", "faces", "models", "checkpoints", "inversion", "library"),
    *("editing", "metrics", "training", "video", "reports", "diagnosis"),
)
"""Of `engine/`, the lowest first: none imports one that stands after it (docs/architecture.md)."""


def _modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(path: Path, lazy: bool) -> set[str]:
    """Modules of the package that this one imports. lazy: also within functions and for type checking."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if lazy else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE.name:
            for name in node.names:
                full = f"{node.module}.{name.name}"
                found.add(full if full in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in MODULES}
    return found


def _room(module: str) -> str:
    return module.removeprefix("wrangan_cli.engine.").split(".")[0]


ENGINE = sorted(name for name in MODULES if name.startswith("wrangan_cli.engine."))


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_a_higher_one(room: str) -> None:
    inside = [name for name in ENGINE if _room(name) == room]
    assert inside
    for module in inside:
        for imported in _imports(MODULES[module], lazy=True):
            if imported.startswith("wrangan_cli.engine."):
                assert ROOMS.index(_room(imported)) <= ROOMS.index(room), f"{module} imports {imported}"
            else:
                above = ("wrangan_cli.commands", "wrangan_cli.api", "wrangan_cli.studio")
                assert not imported.startswith(above), f"{module} imports {imported}"


def test_the_python_interface_needs_no_command() -> None:
    inside = [name for name in MODULES if name.startswith("wrangan_cli.api")]
    assert inside
    for module in inside:
        for imported in _imports(MODULES[module], lazy=True):
            assert not imported.startswith("wrangan_cli.commands"), f"{module} imports {imported}"


def test_the_studio_stands_between_commands_and_engine() -> None:
    studio = [name for name in MODULES if name.startswith("wrangan_cli.studio.")]
    assert studio
    for module in studio:
        for imported in _imports(MODULES[module], lazy=True):
            assert not imported.startswith("wrangan_cli.commands"), f"{module} imports {imported}"
    with_gradio = {"layout", "events", "downloads", "page"}
    for module in studio:
        knows = "import gradio" in MODULES[module].read_text(encoding="utf-8")
        assert knows == (module.rpartition(".")[2] in with_gradio), module


def test_every_module_of_the_engine_is_in_a_room() -> None:
    assert {_room(name) for name in ENGINE} == set(ROOMS)


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {name: _imports(path, lazy=False) - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", ["torch", "numpy", "PIL"])
def test_the_command_line_starts_without_heavy_packages(name: str) -> None:
    for module in ("app", "commands.panels"):
        tree = ast.parse(MODULES[f"wrangan_cli.{module}"].read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert name not in ast.dump(ast.Module(top, [])), module
