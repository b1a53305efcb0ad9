"""Hold the global part of a displacement field back as far as several estimates of it disagree.

Where images match in more than one place, the estimates of both directions and of the mirrored pair go apart, and what
errs most in their mean is how the head moves as a whole: a few px of shift or turn look much like the difference of two
modalities. An estimate with an error of its own is best shortened by that error's share of its mean square (James and
Stein, 1961), and the disagreement measures the error. What is local stays as it was found.
"""

from torch import Tensor

from utils.geometry.affine import affine_part
from utils.geometry.foreground import as_weight, channel_means

AGREEMENT = 0.3
"""Mean square disagreement of good estimates, px^2: up to there nothing is held back."""

CAUTION = 10.0
"""Mean square error of the global part, px^2, for each px^2 of disagreement beyond `AGREEMENT`.

Both were chosen on validation pairs (experiments 77 and 80 in docs/experiments.md)."""

LARGE = 36.0
"""Mean square displacement, px^2, beyond which it is ever less in doubt: modalities do not differ by so much."""


def spread_of(estimates: Tensor) -> Tensor:
    """Mean square distance of displacement fields from their mean.

    Args:
        estimates: (K, B, 2, h, w), px.

    Returns:
        (B, 1, h, w), px^2.
    """
    return (estimates - estimates.mean(dim=0)).square().mean(dim=0).sum(dim=1, keepdim=True)


def mean_spread(spread: Tensor, mask: Tensor) -> Tensor:
    """Mean in the head of what `spread_of` gives.

    Args:
        spread: (B, 1, h, w), px^2.
        mask: (B, 1, h, w), 1 in the head; without a head all places count.

    Returns:
        (B, 1, 1, 1), px^2.
    """
    return channel_means(spread, as_weight(mask))


def held_back(flow: Tensor, doubt: Tensor, mask: Tensor) -> Tensor:
    """What is to be taken from a flow: a share of its affine part.

    Args:
        flow: (B, 2, h, w), px of the scale of the training.
        doubt: (B, 1, 1, 1), px^2, `mean_spread` of the estimates that the flow is the mean of.
        mask: (B, 1, h, w), 1 in the head.

    Returns:
        (B, 2, h, w), px: e / (m + e) of the affine part, where e is `CAUTION` times what the doubt has beyond
        `AGREEMENT`, and m is the mean square of the flow in the head; beyond `LARGE` m^2 / `LARGE`.
    """
    weight = as_weight(mask)
    error = CAUTION * (doubt - AGREEMENT).clamp_min(0)
    mean_square = channel_means(flow.square().sum(dim=1, keepdim=True), weight)
    certain = mean_square * (mean_square / LARGE).clamp_min(1)
    return error / (certain + error).clamp_min(1e-6) * affine_part(flow, weight)
