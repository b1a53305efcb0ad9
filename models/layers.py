"""Building blocks that the networks share."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Convolution with "same" padding."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)


class ConvBlock(nn.Sequential):
    """Convolution, group normalisation, LeakyReLU: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            conv(inputs, outputs, kernel, stride), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.1, inplace=True)
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around an identity path: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.second(self.first(x)), 0.1)


class UNet(nn.Module):
    """U-shaped network over len(widths) resolutions: (B, widths[0], H, W) -> (B, widths[0], H, W).

    Height and width must be multiples of 2 ** (len(widths) - 1).
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResidualBlock(w) for w in widths[1:])
        self.down = nn.ModuleList(ConvBlock(a, b, stride=2) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(conv(b, a, kernel=1) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(ResidualBlock(a) for a in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down, block in zip(self.down, self.blocks, strict=True):
            skips.append(x)
            x = block(down(x))
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

    def _matrix(self, length: int, like: Tensor) -> Tensor:
        position = torch.arange(length, device=like.device, dtype=torch.float32)
        matrix = torch.exp(-((position[:, None] - position) ** 2) / (2 * self.sigma**2))
        return (matrix / matrix.sum(dim=1).max()).to(like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = self._matrix(height, x)
        return rows @ x @ (rows if width == height else self._matrix(width, x))
