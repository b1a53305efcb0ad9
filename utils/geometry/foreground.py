"""Foreground masks, and means over them."""

import torch.nn.functional as F
from torch import Tensor

from utils.geometry.head_box import TISSUE


def channel_means(values: Tensor, mask: Tensor) -> Tensor:
    """Average each channel of `values` (B, C, H, W) with weights `mask` (B, 1, H, W); return (B, C, 1, 1)."""
    total = mask.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return (values * mask).sum(dim=(2, 3), keepdim=True) / total


def masked_means(values: Tensor, mask: Tensor) -> Tensor:
    """Average `values` (B, C, H, W) with weights `mask` (B, 1, H, W) for each image; return (B,)."""
    return channel_means(values, mask).mean(dim=(1, 2, 3))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Average `masked_means` of (B, C, H, W) and (B, 1, H, W) over the batch; return a scalar.

    Each image is normalised by itself. So the mean over two halves of a batch is the mean over the batch, and
    distributed training gives the gradients of one process.
    """
    return masked_means(values, mask).mean()


def foreground(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the share of each cell that lies within about 8 px of tissue.

    Args:
        image: (B, 1, H, W) in [0, 1].
        size: height and width of the mask.

    Returns:
        (B, 1, *size) in [0, 1].
    """
    tissue = (F.avg_pool2d(image, 4) > TISSUE).float()
    near = F.max_pool2d(tissue, 5, stride=1, padding=2)
    if near.device.type == "mps" and any(max(a, b) % min(a, b) for a, b in zip(near.shape[2:], size, strict=True)):
        # MPS averages cells of one size only.
        return F.adaptive_avg_pool2d(near.cpu(), size).to(near.device)
    return F.adaptive_avg_pool2d(near, size)


def as_weight(mask: Tensor) -> Tensor:
    """Add a small weight everywhere in a mask (B, 1, H, W).

    It may be empty, or one row or column wide, and a fit must stay defined.
    """
    return mask + 1e-4
