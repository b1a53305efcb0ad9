from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from tools.expected_error import main


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "plain", EDARFusion("tiny"), modality="all", training={"step": 1}, metrics={})
    return tmp_path / "plain"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for kind in ("MRI", "CT"):
        (tmp_path / "CT-MRI" / kind).mkdir(parents=True)
        for number in range(3):
            image = cv2.resize(generator.integers(60, 255, (16, 16), np.uint8), (256, 256))
            cv2.imwrite(str(tmp_path / "CT-MRI" / kind / f"{number}001.png"), image)
    (tmp_path / "CT-MRI" / "split.csv").write_text("split,name\n" + "".join(f"val,{n}001.png\n" for n in range(3)))
    return tmp_path


def test_a_checkpoint_gets_its_map_and_the_rest_stays(checkpoint, root, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.expected_error.fit.__kwdefaults__", {"steps": 5, "batch": 2, "seed": 0})
    target = tmp_path / "fitted"
    assert main(["fit", str(checkpoint), str(target), "--root", str(root), "--pairs", "2"]) == 0
    before, after = (load_checkpoint(path) for path in (checkpoint, target))
    assert after.model.expected_error is not None and after.training["expected_error"]["pairs"] == 2
    weights = after.model.state_dict()
    assert all(torch.allclose(value, weights[name], atol=1e-2) for name, value in before.model.state_dict().items())
    assert main(["check", str(target), "--root", str(root)]) == 0
    out = capsys.readouterr().out
    assert "| CT | 3 |" in out and "| all | 3 |" in out


def test_a_checkpoint_without_the_map_cannot_be_checked(checkpoint, root, capsys):
    assert main(["check", str(checkpoint), "--root", str(root)]) == 2
    assert "expected a network with a map of expected errors, found one without" in capsys.readouterr().err
