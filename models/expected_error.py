"""Predict the endpoint error of an alignment at every place, by a small network trained on the registration's mistakes.

Its input are maps that hint at mistakes: how far the estimates disagree, how much of the displacement was held back,
where both images show edges, whether these agree, R, W and the entropies. They lie on the grid of cells. With few
weights and no full image the network can hardly memorise a patient.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.filters import gradient_magnitude, resize
from utils.geometry.foreground import channel_means
from utils.maps import gradient_agreement

CHANNELS = 13
"""Number of input maps."""

LEAST = 0.05
"""Smallest predicted error, px at the scale of the training."""

COVERAGE = 0.9
"""Share of the places whose error should lie below the bound."""


def signs_of_error(
    fixed: Tensor,
    aligned: Tensor,
    flow: Tensor,
    held_back: Tensor,
    spread: Tensor,
    maps: tuple[Tensor, ...],
    head: Tensor,
) -> Tensor:
    """Compute the input maps.

    Args:
        fixed, aligned: (B, 1, H, W) in [0, 1], as the registration sees them.
        flow: (B, 2, h, w), px, on the grid of cells, after it was held back.
        held_back: (B, 2, h, w), px, the part that was taken off.
        spread: (B, 1, h, w), px^2, spread of the estimates.
        maps: R, W and both local entropies (bits), (B, 1, ...).
        head: (B, 1, h, w), 1 in the head.

    Returns:
        (B, `CHANNELS`, h, w), each about between -2 and 2.
    """
    size = tuple(flow.shape[2:])
    images = torch.cat((fixed, aligned), dim=1)
    edges = gradient_magnitude(images)
    shown = F.adaptive_avg_pool2d(torch.cat((images, 10 * edges, gradient_agreement(fixed, aligned)), dim=1), size)
    disagreement = (spread + 1e-3).log() / 3
    return torch.cat((
        disagreement,
        channel_means(disagreement, head + 1e-4).expand_as(spread),
        flow.norm(dim=1, keepdim=True) / 8,
        held_back.norm(dim=1, keepdim=True) / 4,
        *(resize(map_, size) for map_ in maps),
        shown,
    ), dim=1)  # fmt: skip


class ExpectedError(nn.Module):
    """Network that predicts the endpoint error, and the bound below which 90 % of the errors lie.

    Args:
        width: number of channels.
    """

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2, padding_mode="replicate"),
            nn.GELU(),
            nn.Conv2d(width, 1, 1),
        )
        # log(e^2 - 1): an untrained network expects about 2 px.
        nn.init.constant_(self.layers[-1].bias, math.log(math.exp(2) - 1))
        self.register_buffer("bound_ratio", torch.tensor(2.0))

    def forward(self, signs: Tensor) -> Tensor:
        """Predict the error (B, 1, h, w), px at the scale of the training, from the input maps (B, C, h, w)."""
        return F.softplus(self.layers(signs)) + LEAST


def expected_error_loss(expected: Tensor, error: Tensor, mask: Tensor) -> Tensor:
    """Compute the negative log-likelihood of exponentially distributed errors. The mean error minimises it.

    Args:
        expected, error: (B, 1, h, w), px.
        mask: (B, 1, h, w), weight of each place.

    Returns:
        Scalar, nats.
    """
    return channel_means(error / expected + expected.log(), mask).mean()
