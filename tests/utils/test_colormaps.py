"""utils/imaging/colormaps.py: scales of 256 colours by name."""

import numpy as np
import pytest

from utils.imaging.colormaps import OWN, palette


@pytest.mark.parametrize("name", [*OWN, "hot", "viridis", "gray"])
def test_scales_are_256_colours_in_range(name):
    scale = palette(name)
    assert scale.shape == (256, 3) and scale.dtype == np.float32 and scale.min() >= 0 and scale.max() <= 1


def test_ends_of_the_scales():
    assert palette("gray")[[0, 128, 255]] == pytest.approx(np.array([[0] * 3, [128 / 255] * 3, [1] * 3]), abs=1e-6)
    assert palette("pet")[0].tolist() == [0, 0, 0] and palette("pet")[-1].tolist() == [1, 0, 1]
    assert palette("spect")[0].tolist() == [0, 0, 0] and palette("spect")[-1].tolist() == [1, 1, 1]


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="one like .*viridis.*found 'virids'"):
        palette("virids")
    with pytest.raises(ValueError, match="hot or viridis; found 'qqq'"):
        palette("qqq")
