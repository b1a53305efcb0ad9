"""Building blocks that the networks share."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution with "same" padding."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """3 x 3 convolution that gives 0 until it is trained: a head whose output is to start from nothing."""
    head = conv(inputs, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def side_by_side(*maps: Tensor) -> Tensor:
    """Maps (B, 2 C_i, H, W) of two groups as one of (B, 2 sum(C_i), H, W): first all of the first group, then the rest.

    The result lies in memory as convolutions want it.
    """
    maps = [map_.contiguous(memory_format=torch.channels_last) for map_ in maps]
    halves = zip(*(map_.chunk(2, dim=1) for map_ in maps), strict=True)
    return torch.cat([part for half in halves for part in half], dim=1)


class ConvBlock(nn.Sequential):
    """Convolution, group normalisation, LeakyReLU: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).

    With `groups`, here and below, that many networks with weights of their own run side by side, each on its share of
    the channels: on a CPU in less time than one after the other.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            conv(inputs, outputs, kernel, stride, groups),
            nn.GroupNorm(8 * groups, outputs),
            nn.LeakyReLU(0.1, inplace=True),
        )


class ResidualBlock(nn.Module):
    """`depth` 3 x 3 convolutions around an identity path: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, groups: int = 1, depth: int = 2) -> None:
        super().__init__()
        blocks = (ConvBlock(channels, channels, groups=groups) for _ in range(depth - 1))
        self.path = nn.Sequential(*blocks, conv(channels, channels, groups=groups))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return F.leaky_relu(x + self.path(x), 0.1, inplace=True)


class UNet(nn.Module):
    """U-shaped network over len(widths) resolutions: (B, widths[0], H, W) -> (B, widths[0], H, W).

    Height and width must be multiples of 2 ** (len(widths) - 1). `depth` is that of its residual blocks.

    Attributes:
        dropout: share of the lower levels' channels that are left out in training. It is there that a network learns
            whole heads by heart.
    """

    def __init__(self, widths: tuple[int, ...], groups: int = 1, depth: int = 2) -> None:
        super().__init__()
        self.dropout = 0.0
        self.blocks = nn.ModuleList(ResidualBlock(w, groups, depth) for w in widths[1:])
        self.down = nn.ModuleList(ConvBlock(a, b, stride=2, groups=groups) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(conv(b, a, kernel=1, groups=groups) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(ResidualBlock(a, groups, depth) for a in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, widths[0], H, W) -> (B, widths[0], H, W)."""
        skips = []
        for down, block in zip(self.down, self.blocks, strict=True):
            skips.append(x)
            x = block(down(x))
            if self.training and self.dropout:
                x = F.dropout2d(x, self.dropout)
        for lateral, merge in zip(reversed(self.lateral), reversed(self.merge), strict=True):
            x = merge(skips.pop() + F.interpolate(lateral(x), scale_factor=2.0, mode="nearest"))
        return x


class GaussianBlur(nn.Module):
    """Gaussian mean over a window of sigma `sigma` px, zero padded: (B, C, H, W) -> (B, C, H, W).

    Two products with a banded matrix: for windows about as wide as the map itself this beats a convolution.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        # Not a tensor that is kept: one of inference is of no use in training, nor one of an export anywhere else.
        rows = torch.from_numpy(gaussian_band(height, self.sigma)).to(x)
        return rows @ x @ (rows if width == height else torch.from_numpy(gaussian_band(width, self.sigma)).to(x))


@lru_cache(maxsize=64)
def gaussian_band(length: int, sigma: float) -> np.ndarray:
    """Matrix (length, length), float32, that blurs vectors of that length with a Gaussian of `sigma`; zero padded."""
    position = np.arange(length, dtype=np.float32)
    band = np.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))
    return (band / band.sum(axis=1).max()).astype(np.float32)
