"""utils/geometry/continuation.py: a field within a mask follows from its surroundings alone."""

import numpy as np

from utils.geometry.continuation import continue_into

ROWS, COLUMNS = np.indices((40, 50), dtype=np.float32)
MASK = (ROWS - 20) ** 2 + (COLUMNS - 22) ** 2 < 100


def test_a_linear_field_goes_on_and_nothing_else_changes() -> None:
    field = np.stack((0.1 * COLUMNS - 0.3 * ROWS, 0.2 * ROWS + 1))
    hidden = np.where(MASK, np.float32(99), field)
    np.testing.assert_allclose(continue_into(hidden, MASK), field, atol=1e-3)
    np.testing.assert_array_equal(continue_into(hidden, MASK)[:, ~MASK], field[:, ~MASK])


def test_values_stay_between_those_around_the_mask() -> None:
    field = np.random.default_rng(0).normal(size=(2, 40, 50)).astype(np.float32)
    actual = continue_into(field, MASK)[:, MASK]
    assert field.min() < actual.min() and actual.max() < field.max()


def test_in_three_dimensions_the_near_axis_counts_more() -> None:
    field = np.zeros((1, 9, 9, 9), np.float32)
    field[0, 0] = 1.0  # one of six sides
    mask = np.zeros((9, 9, 9), bool)
    mask[1:-1, 1:-1, 1:-1] = True
    centre = [continue_into(field, mask, spacing)[0, 4, 4, 4] for spacing in ((1, 1, 1), (0.3, 1, 1), (3, 1, 1))]
    assert abs(centre[0] - 1 / 6) < 1e-3 and centre[1] > 0.4 and centre[2] < 0.05


def test_a_mask_at_the_border_and_one_of_nothing_and_of_all() -> None:
    field = np.full((1, 40, 50), 2.5, np.float32)
    border = ROWS < 10
    np.testing.assert_allclose(continue_into(np.where(border, np.float32(0), field), border), field, rtol=1e-4)
    assert continue_into(field, border & ~border) is field
    assert not continue_into(field, border | ~border).any()
