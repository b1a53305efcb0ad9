"""evaluation/comparison.py: intervals, corrections and effect sizes against values computed by hand."""

import numpy as np
import pytest

from evaluation.comparison import holm, lower_is_better, rank_biserial
from evaluation.intervals import mean_interval


def test_holm_multiplies_by_the_tests_that_are_left_and_never_falls() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 = 0.06, which must not fall below 0.06; 0.5 * 1.
    np.testing.assert_allclose(holm([0.02, 0.5, 0.01, np.nan, 0.03]), [0.06, 0.5, 0.04, np.nan, 0.06])
    assert holm([0.9, 0.8]).max() == 1


def test_effect_size_by_hand() -> None:
    # Ranks of 1, 2, 3 with signs +, -, +: (1 - 2 + 3) / 6. A zero has no rank.
    assert rank_biserial([1, -2, 3, 0]) == pytest.approx(2 / 6)
    assert rank_biserial([1, 2]) == 1
    assert rank_biserial([0, 0]) == 0


def test_interval_is_of_patients_not_of_pairs() -> None:
    values = [0.0] * 50 + [1.0] * 50
    by_pair = mean_interval(values, range(100))
    by_patient = mean_interval(values, [0] * 50 + [1] * 50)
    assert 0.35 < by_pair[0] < 0.5 < by_pair[1] < 0.65
    # Of two patients a quarter of the draws takes the first twice, a quarter the second twice.
    assert by_patient == (0, 1)


def test_interval_weighs_patients_by_their_pairs() -> None:
    low, high = mean_interval([0, 0, 0, 4], ["a", "a", "a", "b"])
    assert (low, high) == (0, 4)


def test_one_patient_has_no_interval() -> None:
    assert np.isnan(mean_interval([1, 2, 3], ["a", "a", "a"])).all()


def test_direction_of_metrics() -> None:
    assert lower_is_better("epe") and lower_is_better("qcv") and lower_is_better("folding")
    assert not lower_is_better("qabf") and not lower_is_better("mi_nats")
