"""FRG-PreReg: feature-level reliability-guided pre-registration.

Predicts where the features of two images can be compared. Adapts the features: reliable places count more, unreliable
ones less. EDA-FlowReg weights every matching score with the reliability map R.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers import ConvBlock, as_convolutions_want, conv
from utils.maps import reliability_prior

FLOOR = 0.02


class PreRegistration(NamedTuple):
    """Adapted features (B, 2, 4, C, h, w) of unit length and reliability (B, 2, h, w) in [0, 1], fixed image first."""

    features: Tensor
    reliability: Tensor


def unit_length(vectors: Tensor, dim: int) -> Tensor:
    """Scale the vectors along axis `dim` of a tensor of any shape (..., C, ...) to length 1; the zero vector stays 0.

    It is ten times as fast as F.normalize on a CPU.
    """
    return vectors * (vectors.square().sum(dim=dim, keepdim=True) + 1e-12).rsqrt()


class FRGPreReg(nn.Module):
    """Reliability head and adapter.

    Args:
        features: channels of one feature vector.
        reliability: False sets R to 1 everywhere (ablation).
    """

    def __init__(self, features: int, reliability: bool = True) -> None:
        super().__init__()
        self.squeeze = ConvBlock(4 * features + 1, 2 * features, kernel=1)
        self.mix = ConvBlock(2 * features, 2 * features)
        self.adapter = conv(2 * features, 2 * 4 * features, kernel=1)
        # Weights without a gradient would stop distributed training.
        self.head = conv(2 * features, 2, kernel=1) if reliability else None
        self.strength = nn.Parameter(torch.tensor([0.6, 0.25]))

    def forward(self, features: Tensor, moving_edges: Tensor) -> PreRegistration:
        """Predict the reliability and adapt the features.

        Args:
            features: (B, 2, 4, C, h, w), fixed image first.
            moving_edges: (B, 1, H, W), gradient magnitude of the moving image.
        """
        f, m = unit_length(features[:, :, 0].float(), dim=2).unbind(1)
        prior = reliability_prior(f, m, moving_edges)
        seen = as_convolutions_want(torch.cat((f, m, (f - m).abs(), f * m, prior), dim=1))
        z = self.mix(self.squeeze(seen))
        if self.head:
            start = torch.logit(prior.clamp(0.16, 0.95))
            # One start for each image: OpenVINO fails when the sum broadcasts it.
            r = FLOOR + (1 - FLOOR) * torch.sigmoid(self.head(z).float() + torch.cat((start, start), dim=1))
        else:
            r = torch.ones_like(prior).expand(-1, 2, -1, -1)
        residual = self.adapter(z).contiguous().unflatten(1, (2, 4, -1))
        return PreRegistration(self.adapt(features, residual, r), r)

    def adapt(self, features: Tensor, residual: Tensor, reliability: Tensor) -> Tensor:
        """Return F + a R D + a_raw (1 - R) F at unit length, with F and D (B, 2, 4, C, h, w) and R (B, 2, h, w)."""
        strength, raw = self.strength
        r = reliability[:, :, None, None]
        # The result is scaled to unit length, so F needs no scaling here.
        return unit_length(torch.addcmul(features, strength * r / (1 + raw * (1 - r)), residual.float()), dim=3)
