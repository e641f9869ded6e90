"""Notebooks: the built files say what the scripts say, and the scripts run in their short form."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))

pytestmark = pytest.mark.filterwarnings("ignore")  # jupyter's own


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_built_notebook_has_the_cells_of_its_script_and_no_outputs(script: Path) -> None:
    jupytext = pytest.importorskip("jupytext")
    wanted = jupytext.read(script)
    built = jupytext.read(script.with_suffix(".ipynb"))
    assert [(c.cell_type, c.source) for c in built.cells] == [(c.cell_type, c.source) for c in wanted.cells]
    assert not any(cell.get("outputs") for cell in built.cells)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_notebook_runs_in_its_short_form(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("RSDMRI_SHORT", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    notebook = jupytext.read(script)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    images = [o for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(images) >= 4
