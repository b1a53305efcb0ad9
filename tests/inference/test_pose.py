"""inference/volumes/pose.py: a head that is turned and shifted in space is found, in either modality."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from inference.volumes.pose import PoseError, estimate_pose, heads_apart, write_transform
from utils.imaging.resampling import resample_volume
from utils.imaging.volumes import Volume

SPACING = 3.0
MRI, CT = (0.02, 0.9, 0.05, 0.5, 0.8, 0.15), (-1000.0, -60.0, 1000.0, 30.0, 40.0, 6.0)
"""Values of air, scalp, skull, brain, a kernel in one half of it, and ventricles."""


def head(values: tuple[float, ...], matrix: np.ndarray, shape: tuple[int, int, int] = (44, 48, 40)) -> Volume:
    """A head of 90 x 110 x 80 mm, without symmetry, seen in a space where matrix (4, 4) takes the head's RAS mm to."""
    affine = np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3] = matrix[:3, 3] - SPACING * (np.array(shape) - 1) / 2
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) * SPACING + affine[:3, 3]
    x, y, z = np.moveaxis((voxels - matrix[:3, 3]) @ matrix[:3, :3], -1, 0)  # the way back of a rotation
    y = y + x * x / 300
    radius = np.sqrt((x / 45) ** 2 + (y / 55) ** 2 + (z / 40) ** 2)
    array = np.select([radius > 1, radius > 0.9, radius > 0.75], values[:3], values[3])
    array = np.where(np.sqrt((x - 15) ** 2 + (y - 12) ** 2 + (z - 6) ** 2) < 9, values[4], array)
    array = np.where(np.sqrt((x / 14) ** 2 + ((y + 8) / 22) ** 2 + ((z - 3) / 7) ** 2) < 1, values[5], array)
    noise = np.random.default_rng(0).normal(0, 0.02 * np.ptp(values[3:]), shape)
    # RAS to slices: rows and columns run to the back and the left.
    return Volume(np.float32(array + noise)[::-1, ::-1].transpose(2, 1, 0).copy(), affine, "", "")


def placed(turn: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def target_error(transform: sitk.Transform, matrix: np.ndarray) -> float:
    """Mean distance between where a transform and the truth put points of the brain, mm."""
    points = np.random.default_rng(1).uniform(-30, 30, (50, 3))
    truth = points @ matrix[:3, :3].T + matrix[:3, 3]
    actual = [np.multiply(transform.TransformPoint((p * [-1, -1, 1]).tolist()), [-1, -1, 1]) for p in points]
    return float(np.linalg.norm(actual - truth, axis=1).mean())


@pytest.mark.parametrize(
    ("turn", "shift"), [((8, -6, 12), (6, -9, 5)), ((-10, 12, 5), (300, -250, 180))], ids=["near", "another frame"]
)
def test_the_pose_of_a_head_is_found(turn: tuple, shift: tuple, tmp_path: Path) -> None:
    matrix = placed(turn, shift)
    fixed, moving = head(MRI, np.eye(4)), head(CT, matrix)
    pose = estimate_pose(fixed, moving)
    assert target_error(pose.transform, matrix) < 1.0
    assert pose.moved == pytest.approx(target_error(sitk.Transform(3, sitk.sitkIdentity), matrix), rel=0.3)
    # What is written reads back as the same transform.
    write_transform(tmp_path / "to" / "pose.tfm", pose.transform)
    assert target_error(sitk.ReadTransform(str(tmp_path / "to" / "pose.tfm")), matrix) < 1.0
    # It brings the moving volume, in one step, onto the fixed grid.
    truth = head(CT, np.eye(4)).slices
    aligned = resample_volume(moving, fixed, pose.transform).slices
    assert np.corrcoef(aligned.ravel(), truth.ravel())[0, 1] > 0.95


def test_affine_takes_up_another_scale() -> None:
    matrix = placed((5, 0, -8), (4, 3, -2))
    moving = head(CT, matrix)
    affine = moving.affine.copy()
    centre = matrix[:3, 3]
    affine[:3] = 1.06 * affine[:3]
    affine[:3, 3] += centre - 1.06 * centre  # the scanner's voxels are 6 % larger than the file's
    matrix[:3, :3] *= 1.06
    pose = estimate_pose(head(MRI, np.eye(4)), moving._replace(affine=affine), "affine")
    assert target_error(pose.transform, matrix) < 1.2


def test_no_pose_is_refused_with_the_reason() -> None:
    fixed = head(MRI, np.eye(4))
    noise = fixed._replace(slices=np.random.default_rng(2).normal(size=fixed.slices.shape).astype(np.float32))
    with pytest.raises(PoseError, match="mutual information is 0.0"):
        estimate_pose(fixed, noise)
    with pytest.raises(PoseError, match="the moving volume shows no head"):
        estimate_pose(fixed, fixed._replace(slices=np.zeros_like(fixed.slices)))


def test_what_is_dark_in_the_mri_and_bright_in_the_moving_volume_puts_no_heads_apart() -> None:
    dark, tracer = (0.02, 0.9, 0.05, 0.5, 0.02, 0.02), (0.0, 0.0, 0.0, 5.0, 100.0, 100.0)
    assert not heads_apart(head(dark, np.eye(4)), head(tracer, np.eye(4)))
    assert heads_apart(head(dark, np.eye(4)), head(tracer, placed((0, 0, 0), (0, 60, 0))))


def test_heads_are_apart_by_their_headers() -> None:
    fixed = head(MRI, np.eye(4))
    assert not heads_apart(fixed, head(CT, placed((0, 0, 5), (3, 2, 0))))
    assert heads_apart(fixed, head(CT, placed((0, 0, 0), (0, 40, 0))))
