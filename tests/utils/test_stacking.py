"""utils/imaging/stacking.py: uneven slices become even ones, and what cannot is named."""

import numpy as np
import pytest

from utils.imaging.images import ImageError
from utils.imaging.stacking import places_of, same_place


def line(*along: float, direction: tuple[float, float, float] = (0, 0, 1)) -> np.ndarray:
    return np.outer(along, direction)


def names(count: int) -> list[str]:
    return [f"{number}.dcm" for number in range(count)]


def test_even_slices_stay_as_they_are() -> None:
    places = places_of("series", line(0, 3, 6.1, 9), names(4))
    assert places.at is None and not places.note
    np.testing.assert_allclose(places.step, [0, 0, 3])
    slices = np.arange(4.0, dtype=np.float32)
    assert places.apply(slices) is slices


@pytest.mark.parametrize("direction", [(0, 0, 1), (0, -0.6, 0.8)])
def test_uneven_slices_are_interpolated_at_the_usual_distance(direction: tuple[float, float, float]) -> None:
    at = np.array([0, 3, 6, 7, 13, 16])
    places = places_of("series", line(*at, direction=direction), names(6))
    np.testing.assert_allclose(places.step, np.multiply(direction, 3))
    # A value that grows with the place is met exactly, whatever the gaps.
    values = at[:, None, None].astype(np.float32) * np.ones((1, 2, 2), np.float32)
    np.testing.assert_allclose(places.apply(values)[:, 1, 0], [0, 3, 6, 9, 12, 15], rtol=1e-6)
    for word in ("1.000 mm from 2.dcm to 3.dcm", "6.000 mm from 3.dcm to 4.dcm", "every 3.000 mm"):
        assert word in places.note


@pytest.mark.parametrize(
    ("positions", "actual"),
    [
        (line(0, 1, 2, 3, 300), "no more than 20 mm apart, found 297.000 mm from 3.dcm to 4.dcm"),
        (line(0, 3, 3), "1 place with several, such as 1.dcm and 2.dcm"),
        (line(0, 3, 6, 9) + [[0, 0, 0], [2, 0, 0], [0, 0, 0], [0, 0, 0]], "1.dcm 2.000 mm beside it"),
    ],
)
def test_what_makes_no_volume_is_named(positions: np.ndarray, actual: str) -> None:
    with pytest.raises(ImageError, match=actual):
        places_of("series", positions, names(len(positions)))


def test_slices_in_one_place_have_one_number() -> None:
    np.testing.assert_array_equal(same_place(line(0, 0, 3, 3.01, 6, 6)), [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(same_place(line(1, 1)), [0, 0])
