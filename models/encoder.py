"""Feature pyramid of one image: from the image, its local entropy and its gradient to matching features."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import UNet, conv
from utils.maps import gradient_magnitude, local_entropy


def entropy_at_half(image: Tensor) -> Tensor:
    """Local entropy (B, 1, H/2, W/2) in bits: 5 x 5 at half resolution covers the 9 x 9 window at full."""
    return local_entropy(F.avg_pool2d(image, 2), window=5)


class Encoder(nn.Module):
    """U-shaped feature network at a quarter of the resolution.

    Args:
        widths: channels at 1/4, 1/8, 1/16, ... of the resolution.
        features: channels of the output.
        entropy: whether local entropy is an input (an ablation switches it off).
    """

    def __init__(self, widths: tuple[int, ...], features: int, entropy: bool = True) -> None:
        super().__init__()
        self.entropy = entropy
        self.unet = UNet(16 + 4 + 4, widths)
        self.head = conv(widths[0], features, kernel=1)

    def forward(self, image: Tensor, entropy: Tensor) -> Tensor:
        """(B, 1, H, W) in [0, 1] and its entropy (B, 1, H/2, W/2) -> features (B, features, H/4, W/4)."""
        half = F.avg_pool2d(image, 2)
        entropy = entropy / 4 if self.entropy else torch.zeros_like(entropy)
        stack = (
            F.pixel_unshuffle(image, 4),
            F.pixel_unshuffle(gradient_magnitude(half), 2),
            F.pixel_unshuffle(entropy, 2),
        )
        return self.head(self.unet(torch.cat(stack, dim=1).contiguous(memory_format=torch.channels_last)))
