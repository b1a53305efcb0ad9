"""Encoders: from each image, its local entropy and its gradient to the features that are matched."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ConvBlock, ResidualBlock, UNet, conv, side_by_side
from utils.filters import min_max
from utils.maps import histogram_entropy, soft_histogram


class EntropyAtQuarter(nn.Module):
    """Local entropy over about 12 x 12 px, at a quarter of the resolution.

    Histograms come from a table of `LEVELS` grey values, in a third of the time of computing them. The table changes
    the entropy by less than a thousandth of a bit.
    """

    LEVELS = 4096

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("histograms", soft_histogram(torch.linspace(0, 1, self.LEVELS + 1)), persistent=False)

    def forward(self, half: Tensor) -> Tensor:
        """Compute the entropy of images at half the resolution, without a gradient.

        Args:
            half: (B, N, H/2, W/2), each channel one image.

        Returns:
            (B, N, H/4, W/4), bits.
        """
        levels = (min_max(half.flatten(0, 1)[:, None])[:, 0] * self.LEVELS).round().int()
        entropy = histogram_entropy(F.embedding(levels, self.histograms), window=3, stride=2)
        return entropy.view(*half.shape[:2], *entropy.shape[2:])


class Encoders(nn.Module):
    """Two U-shaped networks, one for each image, at an eighth of the resolution.

    Each cell of 8 x 8 px carries four feature vectors ("phases"): for the cell's centre and for the points 4 px to the
    right, below, and both. So most of the work runs on the small grid, and matching still steps by 4 px. Fine detail,
    such as the exact edge of the skull, goes straight from a quarter of the resolution to the phases.

    The two networks share no weights, because modalities look different. They run as two groups of one network.

    Args:
        widths: channels of one network at 1/8, 1/16, 1/32, ... of the resolution. At 1/2 and 1/4 a network has a
            quarter and a half of the first width.
        features: channels of one feature vector.
        depth: convolutions of a residual block.
        entropy: False withholds the local entropy (ablation).
    """

    def __init__(self, widths: tuple[int, ...], features: int, depth: int = 2, entropy: bool = True) -> None:
        super().__init__()
        self.entropy = entropy
        quarter, half = widths[0] // 2, widths[0] // 4
        self.stem = nn.Sequential(
            ConvBlock(2 * (4 + 1), 2 * half, groups=2), ConvBlock(2 * half, 2 * quarter, stride=2, groups=2)
        )
        self.block = ResidualBlock(2 * quarter, groups=2, depth=depth)
        self.detail = conv(2 * quarter, 2 * features, groups=2)
        self.join = ConvBlock(2 * (quarter + 1), 2 * widths[0], stride=2, groups=2)
        self.unet = UNet(tuple(2 * width for width in widths), groups=2, depth=depth)
        self.head = conv(2 * widths[0], 2 * 4 * features, kernel=1, groups=2)

    def forward(self, images: Tensor, edges: Tensor, entropy: Tensor) -> Tensor:
        """Compute the features of both images.

        Args:
            images: fixed and moving image, (B, 2, H, W) in [0, 1].
            edges: their gradient magnitude at half the resolution, (B, 2, H/2, W/2).
            entropy: their local entropy, (B, 2, H/4, W/4), bits.

        Returns:
            (B, 2, 4, C, H/8, W/8), fixed image first.
        """
        entropy = entropy / 4 if self.entropy else torch.zeros_like(entropy)
        quarter = self.block(self.stem(side_by_side(F.pixel_unshuffle(images, 2), edges)))
        x = self.head(self.unet(self.join(side_by_side(quarter, entropy)))).contiguous().unflatten(1, (2, 2, 2, -1))
        # pixel_unshuffle with the phases before the channels, without a copy.
        detail = self.detail(quarter).unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).unflatten(1, (2, -1))
        x = (x + detail.permute(0, 1, 4, 6, 2, 3, 5)).float().flatten(1, 4)
        # A feature that is the same everywhere does not tell places apart. One group per channel is instance
        # normalisation, in a fifth of instance_norm's time on a CPU.
        return F.group_norm(x, x.shape[1]).unflatten(1, (2, 4, -1))
