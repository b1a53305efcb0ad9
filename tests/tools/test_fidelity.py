"""tools/fidelity.py: one command for all systems and modalities."""

import numpy as np
import pandas as pd
import pytest

from tools.fidelity import main
from utils.imaging.images import write_image

SIDE = 96


@pytest.fixture
def benchmark(tmp_path):
    """Two pairs of CT and one of PET; a good system in the test command's folders, a bad one in published folders."""
    rng = np.random.default_rng(0)
    for modality, label, names in (("CT", "CT_label", ("1", "2")), ("PET", "PET_label_RGB", ("1",))):
        for name in names:
            fixed = rng.uniform(0.2, 0.6, (SIDE, SIDE)).astype(np.float32)
            moving = np.full((SIDE, SIDE), 0.3, np.float32)
            moving[20:50, 20:50] = 1
            shown = dark = moving
            if modality == "PET":
                moving = np.stack([moving, 0 * moving, 0 * moving], axis=2)
                shown, dark = moving, np.full((SIDE, SIDE, 3), 0.5, np.float32)
            else:
                dark = 0.5 * moving
            truth = tmp_path / "data" / f"{modality}-MRI"
            write_image(truth / "MRI" / f"{name}.png", fixed)
            write_image(truth / label / f"{name}.png", moving)
            for folder, fused in ((tmp_path / "good" / modality, shown), (tmp_path / "bad" / f"{modality}-MRI", dark)):
                write_image(folder / "aligned" / f"{name}.png", moving)
                write_image(folder / "fused" / f"{name}.png", fused)
    return tmp_path


def test_systems_are_measured_on_all_modalities(benchmark, capsys):
    command = ["--data", str(benchmark / "data"), "--output", str(benchmark / "out"), "--workers", "1"]
    for name in ("good", "bad"):
        command += ["--system", name, str(benchmark / name)]
    assert main(command) == 0
    table = pd.read_csv(benchmark / "out/fidelity.csv").set_index(["modality", "system"])
    assert len(table) == 6
    assert (table.loc["CT", "good"]["bone_holes"] == 0).all() and (table.loc["CT", "bad"]["bone_holes"] == 1).all()
    assert table.loc["PET", "good"]["near_white"].item() == 0 and table.loc["PET", "bad"]["near_white"].item() == 1
    text = capsys.readouterr().out
    assert text.strip() == (benchmark / "out/fidelity.md").read_text().strip()
    assert "## CT" in text and "| Bone holes, worst ↓ |" in text and "| Near white ↓ |" in text.split("## PET")[1]


def test_a_system_without_aligned_images_is_named(benchmark, capsys):
    (benchmark / "bad/CT-MRI/aligned").rename(benchmark / "bad/CT-MRI/away")
    command = ["--data", str(benchmark / "data"), "--output", str(benchmark / "out"), "--system", "bad"]
    assert main([*command, str(benchmark / "bad")]) == 2
    assert "aligned: expected a folder of images" in capsys.readouterr().err
    assert main([*command, str(benchmark / "out")]) == 2
    assert "expected a system with folders of CT, PET, SPECT" in capsys.readouterr().err
