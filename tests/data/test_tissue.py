import numpy as np
import pytest

from data.tissue import Tissue, tissue_of_freesurfer, tissue_of_slice


def discs(brain: float, deep: float, rim: float) -> np.ndarray:
    """A head: bright scalp, dark bone, and a brain with a rim of fluid, then two nested discs."""
    y, x = np.mgrid[:256, :256] - 128
    radius = np.hypot(x, y)
    image = np.zeros((256, 256), np.float32)
    for outer, value in ((100, 0.7), (90, 0.02), (78, rim), (72, brain), (40, deep)):
        image[radius < outer] = value
    return image


@pytest.mark.parametrize(("brain", "deep", "rim"), [(0.5, 0.8, 0.2), (0.5, 0.35, 0.9)])
def test_discs_get_their_tissue_under_both_weightings(brain: float, deep: float, rim: float) -> None:
    tissue = tissue_of_slice(discs(brain, deep, rim))
    row = tissue[128]
    expected = {30: Tissue.SCALP, 44: Tissue.BONE, 70: Tissue.GREY, 128: Tissue.WHITE, 10: Tissue.AIR}
    assert {column: row[column] for column in expected} == expected


def test_an_empty_slice_is_air() -> None:
    assert not tissue_of_slice(np.zeros((256, 256), np.float32)).any()


def test_freesurfer_labels() -> None:
    labels = np.array([[0, 2, 41, 4, 24, 10, 1001, 251]], np.int32)
    expected = [0, 5, 5, 3, 3, 4, 4, 5]
    assert tissue_of_freesurfer(labels).tolist() == [expected]
