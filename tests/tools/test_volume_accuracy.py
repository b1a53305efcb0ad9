"""tools/volume_accuracy.py: the truth of its pairs is the truth."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from data.tissue import Tissue
from tools.volume_accuracy import Head, _before, _deformation, _moved, error, main, simulate


@pytest.fixture(scope="module")
def head() -> Head:
    """A head of 200 x 160 x 140 mm, in coarse voxels."""
    z, y, x = np.meshgrid(np.arange(0, 160, 4), np.arange(0, 240, 4), np.arange(0, 200, 4), indexing="ij")
    radius = np.sqrt(((z - 80) / 70) ** 2 + ((y - 118) / 100) ** 2 + ((x - 98) / 80) ** 2)
    tissue = np.select([radius > 1, radius > 0.93, radius > 0.83], [Tissue.AIR, Tissue.SCALP, Tissue.BONE], Tissue.GREY)
    tissue[np.sqrt((z - 90) ** 2 + (y - 90) ** 2 + (x - 80) ** 2) < 22] = Tissue.WHITE
    affine = np.diag([-4.0, -4, 4, 1])
    affine[:3, 3] = 98, 118, -80
    return Head((tissue / 5).astype(np.float32), tissue.astype(np.uint8), affine)


@pytest.mark.parametrize("deform", [False, True])
def test_the_moving_volume_shows_at_the_truth_what_the_fixed_one_shows_at_the_points(head, deform) -> None:
    pair = simulate(head, 4, "CT", deform)  # voxels of 1 mm
    indices = nib.affines.apply_affine(np.linalg.inv(pair.moving.slices_affine), pair.truth)
    columns, rows, slices = np.rint(indices).astype(int).T
    values = pair.moving.slices[slices, rows, columns]
    # Brain, and at its rim a blend with bone of 900; a few millimetres off there would be bone and air.
    assert values.min() > -50 and values.max() < 500 and np.median(values) == pytest.approx(38, abs=6)
    distance = np.linalg.norm(pair.points - pair.truth, axis=1)
    assert 1 < distance.mean() < 60
    assert error(pair, sitk.Transform(3, sitk.sitkIdentity)) == pytest.approx(distance.mean())


def test_a_deformation_has_the_benchmarks_length_and_stays_within_slices(head) -> None:
    field = _deformation(head, np.random.default_rng(0))
    points = np.random.default_rng(1).uniform([-40, -50, -30], [40, 50, 30], (100, 3))
    moved = _moved(field, points) - points
    assert 2 < np.linalg.norm(moved, axis=1).mean() < 7 and not moved[:, 2].any()
    np.testing.assert_allclose(_moved(field, _before(field, points)), points, atol=1e-3)


def test_a_file_that_is_no_volume_is_named(tmp_path, capsys) -> None:
    assert main(["--mri", str(tmp_path / "gone.mgz")]) == 2
    assert "gone.mgz: expected a volume" in capsys.readouterr().err
