"""Feature pyramid of one image: from the image, its local entropy and its gradient to matching features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ConvBlock, ResidualBlock, UNet, conv
from utils.maps import gradient_magnitude, halved, local_entropy


def entropy_at_quarter(image: Tensor) -> Tensor:
    """Local entropy (B, 1, H/4, W/4) in bits over about 12 x 12 px: a sixteenth of the places at full resolution."""
    return local_entropy(halved(image), window=3, stride=2)


class Encoder(nn.Module):
    """U-shaped feature network at an eighth of the resolution that resolves a quarter of it.

    Each cell of 8 x 8 px carries four feature vectors ("phases"), for the cell's centre and for the points 4 px to the
    right of it, below it and both. Most of the work runs on the small grid, yet matching can step by 4 px; what the
    small grid cannot hold, such as where exactly the skull's edge runs, goes straight from a quarter to the phases.

    Args:
        widths: channels at 1/8, 1/16, 1/32, ... of the resolution; before that, a quarter of the first at 1/2 and half
            of it at 1/4.
        features: channels of one feature vector.
        entropy: whether local entropy is an input (an ablation switches it off).
    """

    def __init__(self, widths: tuple[int, ...], features: int, entropy: bool = True) -> None:
        super().__init__()
        self.entropy = entropy
        quarter, half = widths[0] // 2, widths[0] // 4
        self.stem = nn.Sequential(ConvBlock(4 + 1, half), ConvBlock(half, quarter, stride=2))
        self.block = ResidualBlock(quarter)
        self.detail = conv(quarter, features)
        self.join = ConvBlock(quarter + 1, widths[0], stride=2)
        self.unet = UNet(widths)
        self.head = conv(widths[0], 4 * features, kernel=1)

    def forward(self, image: Tensor, entropy: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] and its entropy (B, 1, H/4, W/4) -> features (B, 4, features, H/8, W/8)."""
        entropy = entropy / 4 if self.entropy else torch.zeros_like(entropy)
        edges = gradient_magnitude(halved(image))
        x = torch.cat((F.pixel_unshuffle(image, 2), edges), dim=1).contiguous(memory_format=torch.channels_last)
        quarter = self.block(self.stem(x))
        x = self.head(self.unet(self.join(torch.cat((quarter, entropy), dim=1)))).unflatten(1, (4, -1))
        detail = F.pixel_unshuffle(self.detail(quarter), 2).unflatten(1, (-1, 4)).transpose(1, 2)
        # What all places of an image share says nothing about which place is which.
        return F.instance_norm((x + detail).float().flatten(1, 2)).unflatten(1, (4, -1))
