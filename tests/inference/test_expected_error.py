from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import EDARFusion_test_val
from data.pairs import PairFiles
from evaluation.report.pair_page import sureness_view
from inference.pair_fuser import PairFuser
from inference.results.files import read_maps, save_pair
from inference.results.folder import ResultFolder
from models.checkpoint import save_checkpoint
from models.edarfusion import EDARFusion
from models.expected_error import LEAST
from tests.examples import SAMPLE, read_table
from utils.files import FileError


def fuser(expected_error: bool = True, average: bool = True) -> PairFuser:
    torch.manual_seed(0)
    model = EDARFusion("tiny", expected_error=expected_error).eval()
    return PairFuser(model, torch.device("cpu"), average=average, multistart=False)


def head(side: int, radius: int) -> np.ndarray:
    image = np.zeros((side, side), np.float32)
    cv2.circle(image, (side // 2, side // 2), radius, 0.7, -1)
    return image


@pytest.mark.parametrize(("side", "radius"), [(256, 100), (384, 70)])
def test_the_map_is_of_the_frame_wherever_the_network_looked(side: int, radius: int) -> None:
    result = fuser()(head(side, radius), head(side, radius))
    assert result.maps["expected_error"].shape == (side, side)
    assert result.maps["expected_error"].min() > 0 and result.expected_error > LEAST / 2


def test_no_map_without_averaging_without_the_part_and_for_a_blank_image() -> None:
    image = head(128, 50)
    for fuse, moving in ((fuser(average=False), image), (fuser(False), image), (fuser(), 0 * image)):
        result = fuse(image, moving)
        assert "expected_error" not in result.maps and result.expected_error is None


def test_the_map_is_saved_and_that_of_an_earlier_network_goes(tmp_path: Path) -> None:
    folder, image = ResultFolder(tmp_path, "CT", maps=True), head(128, 50)
    pair = PairFiles("a", tmp_path / "mri.png", tmp_path / "ct.png")
    files = save_pair(folder, pair, fuser()(image, image))
    assert files["maps/expected_error"].is_file()
    assert "expected_error" in np.load(files["maps/values"])
    save_pair(folder, pair, fuser(False)(image, image))
    assert not files["maps/expected_error"].exists() and folder.has_files("a")


def test_maps_of_an_earlier_volume_are_named_where_no_maps_are_asked_for(tmp_path: Path) -> None:
    path = ResultFolder(tmp_path, "CT").map_paths["gate"]
    path.parent.mkdir()
    path.touch()
    assert ResultFolder(tmp_path, "CT", maps=True).strangers([], volumes=True) == []
    for volumes in (True, False):
        assert ResultFolder(tmp_path, "CT").strangers([], volumes=volumes) == ["maps/gate.nii.gz"]


def test_what_an_earlier_run_of_volumes_left_beside_images_is_named(tmp_path: Path) -> None:
    names = ["fused.nii.gz", "pose.tfm", "displacement.nii.gz", "displacement_inverse.mha"]
    for name in names:
        (tmp_path / name).touch()
    assert sorted(ResultFolder(tmp_path, "CT").strangers([])) == sorted(names)
    assert ResultFolder(tmp_path, "CT").strangers([], volumes=True) == []


@pytest.mark.parametrize("damage", ["empty", "cut", "changed"])
def test_damaged_values_of_maps_are_named(tmp_path: Path, damage: str) -> None:
    path, gate = tmp_path / "a.npz", np.random.default_rng(0).random((64, 64), np.float32)
    np.savez_compressed(path, gate=gate)
    (kind,) = read_maps(path, ["gate", "consistency"]).items()
    assert kind[0] == "gate" and np.array_equal(kind[1], gate)
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    data[200:4000] ^= 0x5A
    path.write_bytes({"empty": b"", "cut": path.read_bytes()[:5000], "changed": data.tobytes()}[damage])
    with pytest.raises(FileError, match=r"a\.npz: expected the values of maps \(NumPy archive\), found "):
        read_maps(path, ["gate"])


@pytest.mark.parametrize("calibrated", [True, False])
def test_the_bound_is_shown_where_the_map_is_calibrated(tmp_path: Path, capsys, calibrated: bool) -> None:
    model = EDARFusion("tiny", expected_error=True)
    model.expected_error.bound_ratio.fill_(1.5)
    training = {"inference": {"average": True}, "expected_error": {"calibration_pairs": 2} if calibrated else {}}
    checkpoint, sample = tmp_path / "tiny.safetensors", "simulated_070.png"
    save_checkpoint(checkpoint, model, modality="all", training=training, metrics={})
    files = [f"--{role}={SAMPLE / 'CT' / role / sample}" for role in ("fixed", "moving")]
    options = [f"--checkpoint={checkpoint}", f"--output={tmp_path}", "--workers=1", "--no-multistart", "--modality=CT"]
    assert EDARFusion_test_val.main([*files, *options]) == 0
    row, text = read_table(tmp_path / "CT/metrics.csv").iloc[0], capsys.readouterr().out
    page = (tmp_path / "CT/report.html").read_text()
    assert ("error_bound" in row) == ("Error bound ↓" in text) == ("9 of 10 places below" in page) == calibrated
    notes = "not calibrated on patients never seen" in text, "not calibrated, so without a bound" in page
    assert notes == (not calibrated, not calibrated)
    view = sureness_view(row, {})
    if calibrated:
        assert row["error_bound"] == pytest.approx(1.5 * row["expected_error"])
        assert f"9 of 10 places are expected to lie below {row['error_bound']:.1f} px" in view
    else:
        assert "is not calibrated" in view
