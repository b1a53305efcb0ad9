"""tools/carry.py: volumes, labels and points go where the results say, and other tools say the same."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from inference.volumes.field import VolumeField
from inference.volumes.pose import write_field, write_transform
from tools.carry import carry_points, main, read_steps
from utils.imaging.volumes import Volume, read_volume, write_volume

AFFINE = np.array([[-1.5, 0, 0, 40], [0, -1.5, 0, 45], [0, 0, 3, -20], [0, 0, 0, 1.0]])
SHAPE = (14, 60, 52)


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """Values that tell the place: x + 100 y + 10 z mm, in a file whose axes are those of the slices."""
    slices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)[..., ::-1]
    millimetres = slices @ affine[:3, :3].T + affine[:3, 3]
    return Volume(np.float32(millimetres @ [1, 100, 10]), affine, "", "")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A folder with a pose and a smooth displacement, and the fixed and the moving volume beside it."""
    fixed = ramp(AFFINE, SHAPE)
    write_volume(tmp_path / "fixed.nii.gz", fixed.slices, fixed)
    wide = AFFINE.copy()
    wide[:3, 3] = [70, 75, -50]
    moving = ramp(wide, (34, 100, 94))
    write_volume(tmp_path / "moving.nii.gz", moving.slices, moving)
    pose = sitk.Euler3DTransform()
    pose.SetRotation(0.05, -0.08, 0.1)
    pose.SetTranslation((3, -4, 5))
    write_transform(tmp_path / "out" / "pose.tfm", pose)
    z, y, x = np.meshgrid(np.linspace(0, 1, 14), np.linspace(-2, 2, 15), np.linspace(-2, 2, 13), indexing="ij")
    flows = np.stack((np.sin(x + y + z), np.cos(x - y) * z), axis=1).astype(np.float32) * 0.4
    field = VolumeField(flows, [0.1] * 14, SHAPE[1:])
    write_field(tmp_path / "out" / "displacement.nii.gz", field.transform(fixed))
    write_field(tmp_path / "out" / "displacement_inverse.nii.gz", field.inverse().transform(fixed))
    return tmp_path / "out"


def line(results: Path, *options: str) -> list[str]:
    return ["--results", str(results), "--output", str(results / "carried"), *options]


def inner_points() -> np.ndarray:
    return np.random.default_rng(0).uniform([-25, -30, -15], [25, 30, 15], (40, 3))


def test_a_volume_shows_at_each_point_the_place_that_the_point_goes_to(results: Path) -> None:
    root = results.parent
    options = ["--volume", str(root / "moving.nii.gz"), "--fixed", str(root / "fixed.nii.gz")]
    assert main(["--results", str(results), "--output", str(root / "carried.nii.gz"), *options]) == 0
    actual, like = nib.load(root / "carried.nii.gz"), nib.load(root / "fixed.nii.gz")
    assert actual.shape == like.shape and np.allclose(actual.affine, like.affine)
    # Its values name places; a hundredth of a millimetre along y is 1.
    index = np.array([[20, 30, 7], [10, 12, 3], [40, 50, 10]])
    places = carry_points(nib.affines.apply_affine(like.affine, index), read_steps(results))
    values = actual.get_fdata()[tuple(index.T)]
    np.testing.assert_allclose(values, places @ [1, 100, 10], atol=0.3)


def test_ants_applies_what_was_written_with_the_same_result(results: Path) -> None:
    ants = pytest.importorskip("ants")
    root = results.parent
    fixed, moving = (ants.image_read(str(root / f"{role}.nii.gz")) for role in ("fixed", "moving"))
    transforms = [str(results / "displacement.nii.gz"), str(results / "pose.tfm")]  # the first comes first to points
    theirs = ants.apply_transforms(fixed, moving, transforms, interpolator="linear").numpy()
    options = ["--volume", str(root / "moving.nii.gz"), "--fixed", str(root / "fixed.nii.gz")]
    assert main(["--results", str(results), "--output", str(root / "carried.nii.gz"), *options]) == 0
    ours = nib.load(root / "carried.nii.gz").get_fdata()
    inside = np.s_[4:-4, 4:-4, 2:-2]
    assert np.abs(theirs - ours)[inside].max() < 1.0  # 0.01 mm


def test_labels_are_not_mixed(results: Path) -> None:
    root = results.parent
    moving = read_volume(root / "moving.nii.gz")
    write_volume(root / "labels.nii.gz", np.where(moving.slices > 0, 17.0, 4.0), moving)
    options = ["--volume", str(root / "labels.nii.gz"), "--fixed", str(root / "fixed.nii.gz"), "--labels"]
    assert main(["--results", str(results), "--output", str(root / "carried.nii.gz"), *options]) == 0
    assert set(np.unique(nib.load(root / "carried.nii.gz").get_fdata())) == {4, 17}


def test_points_go_there_and_back_and_their_error_is_printed(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points, root = inner_points(), results.parent
    pd.DataFrame(points, columns=["x", "y", "z"]).to_csv(root / "fixed.csv", index=False)
    forward = [*line(results)[:2], "--output", str(root / "there.csv"), "--points", str(root / "fixed.csv")]
    assert main(forward) == 0
    moved = pd.read_csv(root / "there.csv")[["x", "y", "z"]].to_numpy()
    assert 4 < np.linalg.norm(moved - points, axis=1).mean() < 12
    back = ["--results", str(results), "--output", str(root / "back.csv"), "--points", str(root / "there.csv")]
    assert main([*back, "--inverse", "--truth", str(root / "fixed.csv")]) == 0
    assert pd.read_csv(root / "back.csv")["error_mm"].max() < 0.1
    assert "target registration error: " in capsys.readouterr().out


@pytest.mark.parametrize("case", ["no results", "no columns", "other number", "no fixed"])
def test_what_cannot_be_carried_is_named(results: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    root = results.parent
    (root / "a.csv").write_text("x,y,z\n1,2,3\n")
    (root / "b.csv").write_text("x,y,z\n1,2,3\n4,5,6\n")
    options = ["--results", str(results), "--output", str(root / "c.csv"), "--points", str(root / "a.csv")]
    if case == "no results":
        options[1], word = str(root), "pose.tfm or displacement.nii.gz"
    elif case == "no columns":
        (root / "a.csv").write_text("a,b\n1,2\n")
        word = "columns x, y, z"
    elif case == "other number":
        options += ["--truth", str(root / "b.csv")]
        word = "the 1 points of"
    else:
        options[4:] = ["--volume", str(root / "moving.nii.gz")]
        word = "--fixed"
    try:
        assert main(options) == 2
    except SystemExit as error:
        assert error.code == 2
    assert word in capsys.readouterr().err and not (root / "c.csv").exists()


def test_a_volume_of_another_modality_is_refused(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = results.parent
    (results / "settings.json").write_text('{"modality": "PET"}')
    (root / "moving.nii.gz").rename(root / "ct.nii.gz")
    carried = root / "carried.nii.gz"
    options = ["--volume", str(root / "ct.nii.gz"), "--fixed", str(root / "fixed.nii.gz")]
    options += ["--results", str(results), "--output", str(carried)]
    assert main(options) == 2 and not carried.exists()
    assert "ct.nii.gz: expected a PET volume, whose displacement is in" in capsys.readouterr().err
    assert main([*options, "--modality", "PET"]) == 0 and carried.exists()
