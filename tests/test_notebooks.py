"""The notebooks of docs/ run from their first cell to their last: ``pytest -m slow tests/test_notebooks.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the [docs] extra is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the [docs] extra is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(nbformat.read(path, 4), timeout=600, resources={"metadata": {"path": tmp_path}}).execute()


def test_they_are_kept_without_what_they_printed():
    import json

    assert len(NOTEBOOKS) == 2
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code), path
