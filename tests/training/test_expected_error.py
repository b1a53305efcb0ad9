import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from models.expected_error import CHANNELS, ExpectedError
from training.expected_error import Mistakes, calibration, fit, rescale, risk_coverage, sparsification_area


def mistakes(pairs: int = 24, seed: int = 0) -> Mistakes:
    """Errors that are exponentially distributed, with a mean that the first sign tells."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randn(pairs, CHANNELS, 8, 8, generator=generator)
    signs[:, :1] += torch.randn(pairs, 1, 1, 1, generator=generator)
    mean = (0.5 * signs[:, :1]).exp()
    error = -mean * torch.rand(pairs, 1, 8, 8, generator=generator).clamp_min(1e-6).log()
    return Mistakes(signs, error, torch.ones_like(error), -signs[:, :1])


@pytest.fixture(scope="module")
def fitted() -> ExpectedError:
    torch.manual_seed(0)
    network = ExpectedError(8)
    fit(network, mistakes(96), steps=300)
    return network


def test_what_was_fitted_is_calibrated_on_other_pairs(fitted):
    actual = calibration(fitted, mistakes(48, seed=1))
    assert actual.expected == pytest.approx(actual.error, rel=0.1)
    assert 0.87 < actual.coverage < 0.93
    # Nine tenths of exponentially distributed values lie below 2.3 times their mean.
    assert fitted.bound_ratio.item() == pytest.approx(math.log(10), rel=0.1)
    assert actual.within > 0.25 and actual.over > 0.75
    assert actual.sparsification < 0.9 < 1 < actual.by_disagreement


def test_a_map_comes_to_the_scale_of_other_mistakes(fitted):
    network, others = deepcopy(fitted), mistakes(48, seed=1)
    others = others._replace(error=1.5 * others.error)
    rescale(network, others)
    actual, before = calibration(network, others), calibration(fitted, others)
    assert before.coverage < 0.85 < actual.coverage < 0.95
    assert actual.expected == pytest.approx(actual.error, rel=0.1)
    assert actual.within == pytest.approx(before.within, abs=1e-6)  # the order of the places stays


def test_the_surest_places_err_least(fitted):
    risks = risk_coverage(fitted, mistakes(48, seed=1), (0.25, 0.5, 1.0))
    assert risks[0] < risks[1] < risks[2]


def test_sparsification_of_the_oracle_and_of_its_opposite():
    error = np.arange(1.0, 101.0)
    assert sparsification_area(error, error) == pytest.approx(0)
    assert sparsification_area(error, -error) > 1.5
    shuffled = np.random.default_rng(0).permutation(np.arange(100))
    assert sparsification_area(error, shuffled) == pytest.approx(1, abs=0.3)
    assert sparsification_area(np.ones(9), np.arange(9)) == 0
