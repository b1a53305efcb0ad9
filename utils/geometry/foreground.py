"""Where there is tissue, and means over it."""

import torch.nn.functional as F
from torch import Tensor

from utils.geometry.head_box import TISSUE


def channel_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each channel of `values` (B, C, H, W) weighted by `mask` (B, 1, H, W): (B, C, 1, 1)."""
    total = mask.sum(dim=(2, 3), keepdim=True).clamp_min(1e-6)
    return (values * mask).sum(dim=(2, 3), keepdim=True) / total


def masked_means(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` (B, C, H, W) weighted by `mask` (B, 1, H, W) for each image: (B,)."""
    return channel_means(values, mask).mean(dim=(1, 2, 3))


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `masked_means` over the batch.

    Normalising each image by itself makes the mean over two halves of a batch equal the mean over the batch, so that
    distributed training gives the gradients of one process.
    """
    return masked_means(values, mask).mean()


def foreground(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each cell that lies within about 8 px of tissue.

    Args:
        image: (B, 1, H, W) in [0, 1].
        size: size of the mask.

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
    """A mask, but nowhere 0: a head may be missing, and slopes stay defined in one of a single row or column."""
    return mask + 1e-4
