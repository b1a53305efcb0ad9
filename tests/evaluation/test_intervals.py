import math

import pytest

from evaluation.intervals import removed_interval, removed_share


def test_the_share_counts_errors_not_pairs() -> None:
    assert removed_share([1.0, 1.0], [1.0, 3.0]) == pytest.approx(0.5)


def test_the_interval_is_that_of_patients() -> None:
    # Two patients: the draws show the first alone, both, or the second alone.
    low, high = removed_interval([1.0, 1.0, 3.0], [4.0, 4.0, 4.0], ["a", "a", "b"])
    assert (low, high) == pytest.approx((0.25, 0.75))


def test_equal_patients_leave_no_doubt_and_one_says_nothing() -> None:
    assert removed_interval([1, 1], [2, 2], ["a", "b"]) == pytest.approx((0.5, 0.5))
    assert all(math.isnan(bound) for bound in removed_interval([1, 1], [2, 2], ["a", "a"]))
