from pathlib import Path
from shutil import copy

import cv2
import numpy as np
import pytest
import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from models.expected_error import CHANNELS, ExpectedError
from tools.expected_error import adapt, main
from training.expected_error import Mistakes


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
    assert "| CT, whole | 3 |" in out and "| CT, a share | 3 |" in out and "| all, both | 6 |" in out


def test_a_checkpoint_without_the_map_cannot_be_checked(checkpoint, root, capsys):
    assert main(["check", str(checkpoint), "--root", str(root)]) == 2
    assert "expected a network with a map of expected errors, found one without" in capsys.readouterr().err


@pytest.fixture
def folds(checkpoint: Path, tmp_path: Path) -> Path:
    for number in (1, 2):
        (tmp_path / "folds" / f"fold{number}").mkdir(parents=True)
        copy(checkpoint, tmp_path / "folds" / f"fold{number}" / "last.safetensors")
        splits = ("val" if n % 2 == number % 2 else "train" for n in range(3))
        rows = [f"CT-MRI/MRI/{n}001.png,CT-MRI/CT/{n}001.png,CT,{split}\n" for n, split in enumerate(splits)]
        (tmp_path / "folds" / f"fold{number}.csv").write_text("fixed,moving,modality,split\n" + "".join(rows))
    return tmp_path / "folds"


def test_folds_move_the_scale_of_the_map_and_nothing_else(root, folds, tmp_path, capsys):
    torch.manual_seed(1)
    source, target = tmp_path / "source", tmp_path / "target"
    save_checkpoint(source, EDARFusion("tiny", expected_error=True).half(), modality="all", training={}, metrics={})
    assert main(["calibrate", str(source), str(target), "--root", str(root), "--folds", str(folds)]) == 0
    out = capsys.readouterr().out
    assert "| fold1, whole | 1 |" in out and "| fold2, both | 4 |" in out
    before, after = (load_checkpoint(path).model.state_dict() for path in (source, target))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {f"expected_error.{name}" for name in ("layers.6.weight", "layers.6.bias", "bound_ratio")}


def test_the_bound_is_that_of_whole_deformations():
    torch.manual_seed(0)
    network, size = ExpectedError(), (1, 1, 8, 8)
    errors = torch.linspace(1, 3, 64).view(size), torch.full(size, 50.0)
    whole, part = (Mistakes(torch.zeros(1, CHANNELS, 8, 8), e, torch.ones(size), torch.ones(size)) for e in errors)
    adapt(network, [[whole, part]])
    with torch.no_grad():
        bound = network.bound_ratio * network(whole.signs)
    assert (whole.error <= bound).float().mean().item() == pytest.approx(0.9, abs=0.02)


def test_folds_that_cannot_be_used(checkpoint, folds, root, tmp_path, capsys):
    command = ["calibrate", str(checkpoint), str(tmp_path / "target"), "--root", str(root), "--folds"]
    assert main([*command, str(folds)]) == 2
    assert "expected a network with a map of expected errors, found one without" in capsys.readouterr().err
    source = tmp_path / "source"
    save_checkpoint(source, EDARFusion("fast", expected_error=True), modality="all", training={}, metrics={})
    command[1] = str(source)
    assert main([*command, str(root)]) == 2
    assert "expected fold1.csv, fold2.csv, ... of tools.crossvalidate, found 0 tables" in capsys.readouterr().err
    assert main([*command, str(folds)]) == 2
    assert "last.safetensors: expected preset fast, found tiny" in capsys.readouterr().err
