"""Confidence intervals by resampling patients: slices of one patient are not independent of each other."""

from collections.abc import Sequence

import numpy as np

DRAWS = 2000
"""How often the patients are drawn."""


def removed_share(error: Sequence[float], zero: Sequence[float]) -> float:
    """Share of zero flow's error that an estimate removes, over all pairs: 1 - sum(error) / sum(zero)."""
    return 1 - float(np.sum(error)) / float(np.sum(zero))


def removed_interval(
    error: Sequence[float], zero: Sequence[float], groups: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """95 % interval of `removed_share` by the bootstrap over patients (Efron's percentiles).

    Args:
        error, zero: endpoint error of the estimate and of zero flow, px, one value a pair.
        groups: patient of each pair.
        seed: of the draws.

    Returns:
        Lower and upper bound; not a number where there is a single patient.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return float("nan"), float("nan")
    sums = np.stack([np.bincount(index, weights=np.asarray(values, float)) for values in (error, zero)])
    drawn = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    left, all_ = sums[:, drawn].sum(axis=2)
    low, high = np.percentile(1 - left / all_, (2.5, 97.5))
    return float(low), float(high)
