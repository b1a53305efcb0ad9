import subprocess
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from EDARFusion_train import parse_arguments
from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from tools.crossvalidate import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two slices of each of three patients."""
    generator = np.random.default_rng(0)
    for name in (f"{patient}00{number}.png" for patient in "123" for number in (1, 2)):
        for kind in ("MRI", "CT"):
            (tmp_path / "CT-MRI" / kind).mkdir(parents=True, exist_ok=True)
            image = cv2.resize(generator.integers(60, 255, (16, 16), np.uint8), (256, 256))
            cv2.imwrite(str(tmp_path / "CT-MRI" / kind / name), image)
    return tmp_path


def test_tables_leave_each_patient_out_once(root: Path, tmp_path: Path) -> None:
    assert main(["--root", str(root), "--output", str(tmp_path / "out"), "--draw", "3", "--tables"]) == 0
    tables = [pd.read_csv(tmp_path / "out" / f"fold{fold}.csv", dtype=str) for fold in (1, 2, 3)]
    assert sorted(table.loc[table["split"] == "val", "group"].unique().tolist() for table in tables) == [
        ["1"],
        ["2"],
        ["3"],
    ]
    assert all(len(table) == 6 for table in tables)


def test_pairs_without_a_fold_are_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--root", str(root), "--output", str(tmp_path / "out"), "--tables"]) == 2
    assert "a fold for each pair" in capsys.readouterr().err


def test_a_fold_is_trained_and_scored(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(command: list[str], check: bool) -> subprocess.CompletedProcess:
        options = parse_arguments(command[2:])
        assert (options.root, options.preset, options.simulated) == ([str(root)], "tiny", 0.5)
        network = EDARFusion(options.preset)
        save_checkpoint(Path(options.output, "last.safetensors"), network, modality="all", training={}, metrics={})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    options = ["--root", str(root), "--output", str(tmp_path / "out"), "--draw", "3", "--only", "2"]
    assert main([*options, "--", "--preset", "tiny", "--epochs", "1", "--simulated", "0.5"]) == 0
    scores = pd.read_csv(tmp_path / "out" / "scores.csv")
    assert len(scores) == 2 and scores["fold"].unique().tolist() == [2]
    assert "| CT | 2 |" in capsys.readouterr().out
