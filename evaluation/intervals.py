"""Confidence intervals by resampling patients: slices of one patient are not independent of each other."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
"""How often the patients are drawn."""


def removed_share(error: Sequence[float], zero: Sequence[float]) -> float:
    """Compute the share of zero flow's error that an estimate removes, over all pairs: 1 - sum(error) / sum(zero)."""
    return 1 - float(np.sum(error)) / float(np.sum(zero))


def removed_interval(
    error: Sequence[float], zero: Sequence[float], groups: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """Compute the 95 % interval of `removed_share` by the bootstrap over patients (Efron's percentiles).

    Args:
        error, zero: endpoint error of the estimate and of zero flow, px, one value a pair.
        groups: patient of each pair.
        seed: of the draws.

    Returns:
        Lower and upper bound; not a number where there is a single patient.
    """
    left, all_ = _resampled(groups, seed, error, zero)
    return _interval(1 - left / all_)


def mean_interval(values: Sequence[float], groups: Sequence, seed: int = 0) -> tuple[float, float]:
    """Compute the 95 % interval of a mean over pairs, by the same bootstrap: a patient is drawn with all of its pairs.

    Args:
        values: one a pair.
        groups: patient of each pair.
        seed: of the draws.

    Returns:
        Lower and upper bound; not a number where there is a single patient.
    """
    total, count = _resampled(groups, seed, values, np.ones(len(values)))
    return _interval(total / count)


def _resampled(groups: Sequence, seed: int, *values: Sequence[float]) -> np.ndarray:
    """Add up values, one for each pair, over the patients of each draw: (number of values, DRAWS).

    Not a number where there is a single patient, of whose kind nothing can be said.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=np.asarray(x, float)) for x in values])
    if len(names) < 2:
        return np.full((len(values), DRAWS), np.nan)
    drawn = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    return sums[:, drawn].sum(axis=2)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)
