"""Building blocks that the networks share."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

USUAL_LENGTH = 32
"""Cells of a row at the 256 px of the training."""


def as_convolutions_want(x: Tensor) -> Tensor:
    """Lay a map (B, C, H, W) out in memory as convolutions are fastest: channels last on a CPU.

    On a GPU the group normalisations in between give the usual layout back, so that each layer would change it twice.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x.contiguous()


def to_device(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a network to a device, with its kernels in the layout of `as_convolutions_want`."""
    on_cpu = torch.device(device).type == "cpu"
    return network.to(device=device, memory_format=torch.channels_last if on_cpu else torch.contiguous_format)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Make a convolution that keeps the size ("same" padding)."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)


def zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Make a 3 x 3 convolution whose output is 0 before training."""
    head = conv(inputs, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def side_by_side(*maps: Tensor) -> Tensor:
    """Join maps of two groups: first all channels of the first group, then those of the second.

    Args:
        maps: (B, 2 C_i, H, W), the first half of each map's channels belongs to the first group.

    Returns:
        (B, 2 sum(C_i), H, W), channels last in memory.
    """
    maps = [as_convolutions_want(map_) for map_ in maps]
    halves = zip(*(map_.chunk(2, dim=1) for map_ in maps), strict=True)
    return torch.cat([part for half in halves for part in half], dim=1)


class ConvBlock(nn.Sequential):
    """Convolution, group normalisation, LeakyReLU: (B, inputs, H, W) -> (B, outputs, H / stride, W / stride).

    With `groups`, here and below, several networks run side by side. Each has its own weights and its own share of the
    channels. On a CPU that is faster than one network after the other.
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
        """Compute (B, C, H, W) -> (B, C, H, W)."""
        return F.leaky_relu(x + self.path(x), 0.1, inplace=True)


class UNet(nn.Module):
    """U-shaped network over len(widths) resolutions: (B, widths[0], H, W) -> (B, widths[0], H, W).

    Height and width must be multiples of 2 ** (len(widths) - 1). `depth` is the depth of the residual blocks.

    Attributes:
        dropout: share of the lower levels' channels that training leaves out. The lower levels memorise whole heads.
    """

    def __init__(self, widths: tuple[int, ...], groups: int = 1, depth: int = 2) -> None:
        super().__init__()
        self.dropout = 0.0
        self.blocks = nn.ModuleList(ResidualBlock(w, groups, depth) for w in widths[1:])
        self.down = nn.ModuleList(ConvBlock(a, b, stride=2, groups=groups) for a, b in pairwise(widths))
        self.lateral = nn.ModuleList(conv(b, a, kernel=1, groups=groups) for a, b in pairwise(widths))
        self.merge = nn.ModuleList(ResidualBlock(a, groups, depth) for a in widths[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Run the network: (B, widths[0], H, W) -> (B, widths[0], H, W)."""
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

    Two products with a banded matrix are faster than a convolution when the window is about as wide as the map.
    """

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.register_buffer("usual_band", gaussian_band(USUAL_LENGTH, sigma), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Compute (B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        rows = self._band(height, x)
        return rows @ x @ (rows if width == height else self._band(width, x))

    def _band(self, length: int, x: Tensor) -> Tensor:
        if length == USUAL_LENGTH:
            return self.usual_band.to(x.dtype)
        # Made anew: one of inference would be of no use in training, nor one of an export anywhere else.
        return gaussian_band(length, self.sigma, x.device).to(x.dtype)


def gaussian_band(length: int, sigma: float, device: torch.device | str = "cpu") -> Tensor:
    """Make the matrix (length, length), float32, that blurs a vector with a Gaussian of `sigma`, zero padded."""
    position = torch.arange(length, dtype=torch.float32, device=device)
    band = torch.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))
    return band / band.sum(dim=1).max()
