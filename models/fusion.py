"""Flow-guided fusion under the alignment-consistency map C."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ConvBlock, ResidualBlock, as_convolutions_want, conv, zero_conv
from utils.filters import halved, resize
from utils.maps import gradient_agreement

AT_ONCE = 8 * 256 * 256
"""Pixels that a CPU fuses at one time: beyond, it spends its time on fetching memory instead of on convolutions."""

REACH = 0.5
"""Largest correction: without a bound it can run away, as a grey value that is cut to [0, 1] feels no pull back."""


class Fusion(NamedTuple):
    """Fused image (B, 1, H, W) and consistency map C (B, 1, H / 2, W / 2), both in [0, 1]."""

    fused: Tensor
    consistency: Tensor


def alignment_consistency(fixed: Tensor, aligned: Tensor, reliability: Tensor, gate: Tensor) -> Tensor:
    """Where edges of both images may be joined: local gradient agreement, trusted as far as R and W allow.

    C = agreement * (R + W) / 2 + (1 - (R + W) / 2) / 2: without trust the map says one half, neither yes nor no.

    Args:
        fixed, aligned: (B, 1, H, W) in [0, 1].
        reliability, gate: (B, 1, H, W) in [0, 1].

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    trust = (reliability + gate) / 2
    return trust * gradient_agreement(fixed, aligned) + (1 - trust) / 2


class FlowGuidedFusion(nn.Module):
    """Mixes the fixed and the aligned image with a predicted weight and adds a small predicted correction.

    Args:
        channels: width of the network at half the resolution; twice that at a quarter, where it takes in its
            surroundings and the maps that say how far the alignment may be trusted.
        depth: convolutions of a residual block.
    """

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.stem = conv(3, channels, kernel=5, stride=2)
        self.down = ConvBlock(channels + 3, 2 * channels, stride=2)
        self.surroundings = nn.Sequential(*(ResidualBlock(2 * channels, depth=depth) for _ in range(2)))
        self.lateral = conv(2 * channels, channels, kernel=1)
        self.block = ResidualBlock(channels, depth=depth)
        self.head = zero_conv(channels, 2 * 4)

    def forward(self, fixed: Tensor, aligned: Tensor, reliability: Tensor, gate: Tensor) -> Fusion:
        """Images (B, 1, H, W) in [0, 1] with H and W multiples of 4; R and W (B, 1, h, w) -> `Fusion`."""
        if fixed.device.type == "cpu" and len(fixed) > 1 and fixed.numel() > AT_ONCE:
            most = max(1, AT_ONCE // fixed[0].numel())
            parts = zip(*(x.split(most) for x in (fixed, aligned, reliability, gate)), strict=True)
            return Fusion(*map(torch.cat, zip(*(self(*part) for part in parts), strict=True)))
        fixed_half, aligned_half = halved(fixed), halved(aligned)
        trust = [resize(map_, fixed_half.shape[2:]) for map_ in (reliability, gate)]
        consistency = alignment_consistency(fixed_half, aligned_half, *trust)
        brighter = torch.maximum(fixed, aligned)
        images = as_convolutions_want(torch.cat((fixed, aligned, brighter), dim=1))
        x = F.leaky_relu(self.stem(images - 0.25), 0.1, inplace=True)
        # All in one layout; else joining them would move what lies as convolutions want it.
        maps = as_convolutions_want(torch.cat((consistency, *trust), dim=1))
        around = self.surroundings(self.down(torch.cat((x, maps), dim=1)))
        x = self.block(x + F.interpolate(self.lateral(around), scale_factor=2.0, mode="nearest"))
        # pixel_shuffle, in half of its time: the four pixels of a place lie side by side in memory.
        pixels = self.head(x).float().unflatten(1, (2, 2, 2)).permute(0, 1, 4, 2, 5, 3)
        weight, correction = pixels.flatten(4).flatten(2, 3).split(1, dim=1)
        # Starts near the maximum rule, which at true alignment is a good fusion already; the correction sharpens.
        mixed = brighter - torch.sigmoid(weight - 3) * (fixed - aligned).abs()
        fused = mixed + REACH * F.softsign(correction / REACH)
        cut = fused.clamp(0, 1)
        if torch.is_grad_enabled():
            cut = fused + (cut - fused).detach()  # with a gradient where the cut would leave none
        return Fusion(cut, consistency)
