"""docs/tour.ipynb: runs from its first cell to its last one, and is kept with small outputs."""

import json
from pathlib import Path

import pandas as pd
import pytest

from tests.examples import REPOSITORY

nbformat = pytest.importorskip("nbformat", reason="needs requirements-dev.txt")
TOUR = REPOSITORY / "docs" / "tour.ipynb"
MOST_BYTES = 500_000


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("TOUR_OUTPUT", str(tmp_path))
    monkeypatch.setenv("TOUR_MINUTES", "0.05")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Jupyter starts a notebook in its own folder.
    resources = {"metadata": {"path": str(TOUR.parent)}}
    NotebookClient(nbformat.read(TOUR, 4), timeout=600, kernel_name="python3", resources=resources).execute()
    assert (tmp_path / "fused.png").is_file() and (tmp_path / "run" / "last.safetensors").is_file()
    scores = pd.read_csv(tmp_path / "PET" / "metrics.csv").iloc[-1]
    assert scores["epe"] < scores["epe_before"]


def test_its_outputs_are_small_and_name_no_folder_of_a_machine() -> None:
    text = TOUR.read_text(encoding="utf-8")
    assert len(text) < MOST_BYTES
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)
    assert str(REPOSITORY) not in text
