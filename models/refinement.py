"""Refinement: the last increment of the displacement field.

The matching compares features in steps of 4 px under wide windows. A pixel or two across the skull remain. The
refinement reads them off the fixed and the aligned image, joined at a quarter of the resolution.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.eda_flowreg import CELL, STEP, add_increment, soft_gate
from models.layers import ConvBlock, UNet, side_by_side, zero_conv
from utils.filters import gradient_magnitude, halved, resize
from utils.geometry.warp import resize_flow, warp


class Refinement(nn.Module):
    """Join both images, then predict an increment with a U-shaped network. The gate W softens the increment.

    Args:
        widths: channels at 1/8, 1/16, ... of the resolution; at 1/4 half of the first.
        depth: convolutions of a residual block.
        stride: 2 reads the images at half the resolution, 1 as they are.
    """

    def __init__(self, widths: tuple[int, ...], depth: int = 2, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        quarter = widths[0] // 2
        self.stem = ConvBlock(2 * (16 // stride**2 + 4), 2 * quarter, groups=2)
        self.mix = ConvBlock(2 * quarter, quarter)
        self.join = ConvBlock(quarter + 4, widths[0], stride=2)
        self.unet = UNet(widths, depth=depth)
        self.head = zero_conv(widths[0], 2)
        self.alpha = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, fixed: Tensor, moving: Tensor, fixed_edges: Tensor, reliability: Tensor, gate: Tensor, flow: Tensor
    ) -> Tensor:
        """Refine a displacement field.

        Args:
            fixed, moving: (B, 1, H / stride, W / stride) in [0, 1].
            fixed_edges: (B, 1, H / 2, W / 2), gradient magnitude of the fixed image at half the resolution.
            reliability, gate: R and W, (B, 1, ...) in [0, 1].
            flow: (B, 2, H / 8, W / 8), px of the full image.

        Returns:
            (B, 2, H / 8, W / 8), px of the full image.
        """
        aligned = warp(moving, resize_flow(flow / CELL, moving.shape[2:]))
        images = torch.cat((fixed, aligned), dim=1)
        aligned_edges = gradient_magnitude(aligned if self.stride == 2 else halved(aligned))
        edges = F.pixel_unshuffle(torch.cat((fixed_edges, aligned_edges), dim=1), 2)
        x = self.mix(self.stem(side_by_side(F.pixel_unshuffle(images, 4 // self.stride), edges)))
        maps = [resize(map_, x.shape[2:]) for map_ in (reliability, gate, flow / CELL)]
        increment = STEP * self.head(self.unet(self.join(torch.cat((x, *maps), dim=1)))).float()
        return add_increment(flow, soft_gate(self.alpha, resize(gate, flow.shape[2:])) * increment)
