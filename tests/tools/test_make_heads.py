from pathlib import Path

import nibabel
import numpy as np
import pytest

from data.simulated_heads import LabelledHeads
from data.tissue import Tissue
from tools.make_heads import main, slices_of_volume


def write_ball(path: Path, labels: bool = False, spacing: float = 4.0) -> Path:
    """A head that is a ball: scalp around bone around a brain of two tissues, along the axes left, front, top."""
    grid = (np.mgrid[:56, :56, :4] - np.array([28, 28, 2]).reshape(3, 1, 1, 1)) * spacing
    radius = np.sqrt((grid**2).sum(axis=0))
    values = ((96, 700), (86, 20), (76, 500), (44, 800)) if not labels else ((76, 1010), (44, 2))
    volume = np.zeros(radius.shape, np.int32 if labels else np.int16)
    for outer, value in values:
        volume[radius < outer] = value
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([-spacing, spacing, spacing, 1])), path)
    return path


@pytest.mark.parametrize("known", [False, True])
def test_slices_of_a_volume_show_a_head_with_its_tissue(known: bool, tmp_path: Path) -> None:
    labels = str(write_ball(tmp_path / "labels.nii", labels=True)) if known else None
    slices = {piece.name: piece for piece in slices_of_volume(str(write_ball(tmp_path / "ball.nii")), labels)}
    middle = slices["ball_008"]
    assert middle.mri.shape == middle.tissue.shape == (256, 256)
    assert middle.group == "ball"
    row = middle.tissue[128]
    assert row[128] == Tissue.WHITE and row[5] == Tissue.AIR
    assert {Tissue.SCALP, Tissue.GREY, Tissue.WHITE} <= set(row)
    assert 0.9 < middle.mri.max() <= 1


def test_the_command_writes_heads_that_can_be_read(tmp_path: Path) -> None:
    ball, other = write_ball(tmp_path / "ball.nii"), write_ball(tmp_path / "other.nii")
    assert main(["--output", str(tmp_path / "heads"), "--volume", str(ball), "--test", str(other)]) == 0
    train, test = (LabelledHeads(tmp_path / "heads", split) for split in ("train", "test"))
    assert set(train.groups) == {"ball"} and set(test.groups) == {"other"}
    assert set(np.unique(train[len(train) // 2].tissue)) <= set(Tissue)


def test_a_volume_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "heads"), "--volume", str(tmp_path / "none.nii")]) == 2
    assert "none.nii" in capsys.readouterr().err
    assert not (tmp_path / "heads" / "heads.csv").exists()
