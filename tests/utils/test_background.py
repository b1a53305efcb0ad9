"""Constants that stand for no measurement, and values that only look like them."""

from pathlib import Path

import numpy as np
import pytest

from tests.utils.test_volumes import nifti
from utils.imaging.background import without_constant
from utils.imaging.volumes import read_volume


def brain(low: float = 0, high: float = 1500) -> np.ndarray:
    """Values (X, Y, Z) between two bounds, both of which occur."""
    values = np.random.default_rng(0).uniform(low, high, (16, 18, 12)).astype(np.float32)
    values[8, 9, 6:8] = low, high
    return values


@pytest.mark.parametrize("constant", [65535, 32767, -1e30, -9999])
def test_a_constant_beyond_the_field_of_view_is_background(tmp_path: Path, constant: float) -> None:
    array = brain()
    measured = array.copy()
    array[:, :2] = array[:, -2:] = constant
    volume = read_volume(nifti(tmp_path / "a.nii", array))
    assert f"found {constant:g} in 22.2% of the voxels" in volume.note and "count as background" in volume.note
    result = read_volume(nifti(tmp_path / "b.nii", np.where(array == constant, 0, measured))).slices
    np.testing.assert_array_equal(volume.slices, result)


def _saturated() -> np.ndarray:
    return np.where(brain(0, 5000) > 4095, 4095, brain(0, 5000))


@pytest.mark.parametrize(
    ("array", "value", "where"),
    [
        (brain(), 65535, np.s_[6:9, 6:9, 4:8]),  # a hot spot
        (brain(-1024, 1500), 3071, np.s_[4:9, 4:9, :]),  # metal from end to end
        (_saturated(), 4095, np.s_[:, :2]),  # a bright border at the end of 12 bits
        (brain(900, 1000), 0, np.s_[:, :2]),  # the usual background
        (np.zeros((16, 18, 12), np.float32), 1, np.s_[:, :2]),  # a mask
        (np.rint(brain(0, 5)), 255, np.s_[:, :2]),  # labels, of which 255 says that nothing is known
        (brain(-1024, 1500), -2000, np.s_[:, :2]),  # air of a scanner, within reach of the others
    ],
)  # fmt: skip
def test_values_that_were_measured_stay(array: np.ndarray, value: float, where: tuple) -> None:
    array = array.astype(np.float32)
    array[where] = value
    result, note = without_constant(array)
    assert result is array and not note


def test_a_constant_volume_stays() -> None:
    array = np.full((4, 4, 4), 7, np.float32)
    assert without_constant(array)[0] is array
