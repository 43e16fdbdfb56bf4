"""The notebooks: no stored outputs, no logic of their own, and the compositing one runs from end to end."""

import ast
import importlib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 300


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stripped_and_only_calls(path: Path) -> None:
    notebook = read(path)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    for cell in code:
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert not re.search(r"^\s*(def|class) ", "".join(cell["source"]), re.MULTILINE)
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    assert any("FULL = False" in "".join(cell["source"]) for cell in code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_a_notebook_imports_is_there(path: Path) -> None:
    cells = ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    lines = "\n".join(re.sub(r"^\s*[%!].*", "pass", cell, flags=re.MULTILINE) for cell in cells)
    imports = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        module, names = importlib.import_module(str(node.module)), [name.name for name in node.names]
        gone = [name for name in names if not hasattr(module, name)]
        assert [name for name in gone if find_spec(f"{node.module}.{name}") is None] == []


@pytest.mark.slow
def test_compose_notebook_runs_from_its_own_folder() -> None:
    """The object is drawn, and the depth that is estimated again comes closer there to what was asked for."""
    path = ROOT / "notebooks" / "compose.ipynb"
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == 3
    text = "".join(output.get("text", "") for output in outputs)
    assert "'changed_outside': 0" in text
    asked = re.search(r"depth asked for ([\d.]+) to ([\d.]+)", text)
    seen = re.search(r"estimated ([\d.]+) at the object, ([\d.]+) there before", text)
    assert asked
    assert seen
    far, near = float(asked[1]), float(asked[2])
    after, before = float(seen[1]), float(seen[2])
    middle = (far + near) / 2
    assert before < middle  # nothing was there
    assert abs(after - middle) < abs(before - middle)


@pytest.mark.slow
def test_layers_notebook_runs_from_its_own_folder() -> None:
    """Every layer leaves its object, nothing else changes, and the layers go out."""
    path = ROOT / "notebooks" / "layers.ipynb"
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 3
    text = "".join(output.get("text", "") for output in outputs)
    assert "changed outside what the layers may change: 0" in text
    assert "'pyramid': [0.17, 0.19, 0.51, 0.64]" in text
    assert "['erase teal prism', 'object teal prism', 'object pyramid']" in text
    assert "data/pyramid.png" in text
