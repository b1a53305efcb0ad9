"""Shorten a displacement field where several estimates of it disagree, and drop what is too short to be told from none.

Where images match in more than one place, the estimates of both directions and of the mirrored pair differ. Their mean
errs most in the motion of the head as a whole: a few px of shift or rotation look much like the difference of two
modalities. The best estimate is shortened by the share that its error has of its mean square (James and Stein, 1961).
The disagreement measures the error: over the whole head for the global part, around each place for the local part.

Even of a pair that lies right the estimates find a little, in agreement: the difference of two modalities looks like a
small displacement. So a small displacement is dropped.
"""

from torch import Tensor, nn

from models.layers import GaussianBlur
from utils.geometry.affine import affine_part
from utils.geometry.foreground import as_weight, channel_means

AGREEMENT = 0.3
"""Mean square disagreement of good estimates, px^2. Up to it nothing is held back."""

CAUTION = 10.0
"""Mean square error of the global part, px^2, for each px^2 of disagreement beyond `AGREEMENT`.

Both were chosen on validation pairs (experiments 77 and 80 in docs/experiments.md)."""

LOCAL_CAUTION = 2.0
"""The same for the local part, with the disagreement around a place.

Chosen on simulated heads that did not train and on validation pairs (docs/experiments.md)."""

AROUND = 3.0
"""Sigma of the window in which the disagreement around a place is averaged, cells."""

FAINT = (0.4, 1.2)
"""Bounds of the mean displacement around a place, px: up to the first all of it is dropped, from the second on none.

In simulated pairs that lie right the default finds 0.5 to 0.8 px. So less cannot be told from nothing. Chosen on a
simulated head that did not train (experiment 181 in docs/experiments.md)."""

FAINT_AROUND = 5.0
"""Sigma of the window in which the displacement around a place is averaged, cells."""

LARGE = 36.0
"""Mean square displacement, px^2, above which less is held back: modalities do not differ by so much."""


def spread_of(estimates: Tensor) -> Tensor:
    """Compute the mean square distance of displacement fields from their mean.

    Args:
        estimates: (K, B, 2, h, w), px.

    Returns:
        (B, 1, h, w), px^2.
    """
    return (estimates - estimates.mean(dim=0)).square().mean(dim=0).sum(dim=1, keepdim=True)


def mean_spread(spread: Tensor, mask: Tensor) -> Tensor:
    """Average a spread over the head.

    Args:
        spread: (B, 1, h, w), px^2.
        mask: (B, 1, h, w), 1 in the head. Without a head all places count.

    Returns:
        (B, 1, 1, 1), px^2.
    """
    return channel_means(spread, as_weight(mask))


class HeldBack(nn.Module):
    """The displacement to take off a flow: a share of its affine part, and of the local part at each place.

    Both shares are e / (m + e). For the affine part, e is `CAUTION` times the mean spread in the head above
    `AGREEMENT`, and m is the mean square of the flow in the head, or m^2 / `LARGE` above `LARGE`. For the local part, e
    is `LOCAL_CAUTION` times the mean spread around the place above `AGREEMENT`, and m is its mean square.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blur = GaussianBlur(AROUND)

    def forward(self, flow: Tensor, spread: Tensor, mask: Tensor) -> Tensor:
        """Compute it.

        Args:
            flow: (B, 2, h, w), px at the scale of the training; the mean of several estimates.
            spread: (B, 1, h, w), px^2, `spread_of` these estimates.
            mask: (B, 1, h, w), 1 in the head.

        Returns:
            (B, 2, h, w), px.
        """
        weight = as_weight(mask)
        error = CAUTION * (mean_spread(spread, mask) - AGREEMENT).clamp_min(0)
        mean_square = channel_means(flow.square().sum(dim=1, keepdim=True), weight)
        certain = mean_square * (mean_square / LARGE).clamp_min(1)
        affine = affine_part(flow, weight)
        local = flow - affine
        local_error = LOCAL_CAUTION * (_around(spread, weight, self.blur) - AGREEMENT).clamp_min(0)
        local_square = channel_means(local.square().sum(dim=1, keepdim=True), weight)
        return _share(error, certain) * affine + _share(local_error, local_square) * local


class FaintPart(nn.Module):
    """The part of a flow to take off because it is too short to be told from none."""

    def __init__(self) -> None:
        super().__init__()
        self.blur = GaussianBlur(FAINT_AROUND)

    def forward(self, flow: Tensor, mask: Tensor) -> Tensor:
        """Compute it.

        Args:
            flow: (B, 2, h, w), px at the scale of the training.
            mask: (B, 1, h, w), 1 in the head. Without a head all places count.

        Returns:
            (B, 2, h, w), px: the whole flow where its mean length around the place is at most the first bound of
            `FAINT`, nothing from the second on, a share in between.
        """
        dropped, kept = FAINT
        length = _around(flow.norm(dim=1, keepdim=True), as_weight(mask), self.blur)
        return ((kept - length) / (kept - dropped)).clamp(0, 1) * flow


def _around(values: Tensor, weight: Tensor, blur: GaussianBlur) -> Tensor:
    """Average values (B, 1, h, w) in the window of `blur` around each place, under a positive weight."""
    return blur(values * weight) / blur(weight)


def _share(error: Tensor, mean_square: Tensor) -> Tensor:
    return error / (mean_square + error).clamp_min(1e-6)
