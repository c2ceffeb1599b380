"""The notebook for Colab, from its first cell to its last, with a tiny model and two steps."""

from pathlib import Path

import nbformat
import tiny
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def test_the_notebook_runs_and_shows_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(ROOT / "examples" / "colab.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    flags = " ".join(flag for flag in tiny.FLAGS if "train.steps" not in flag)
    parameters.source += f'\nSTEPS, FLAGS, WORKDIR = 2, "{flags} --config.train.log_every=1", "{tmp_path / "run"}"\n'
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 3
    (table,) = [output.data["text/plain"] for output in outputs if output.output_type == "execute_result"]
    assert "halftrue_beat_all" in table
    assert "halftrue_pairwise/skin tone" in table
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "half-true captions" in printed
