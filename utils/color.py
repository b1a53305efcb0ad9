"""Colour of PET and SPECT, which the fused image gets back."""

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor


def with_color(fused: Tensor, aligned: Tensor) -> Tensor:
    """Give a fused image the colour of the aligned one, and keep its luma.

    By BT.601 a colour is luma and what its channels differ from it (as Cb and Cr say it). These differences are added
    to the fused luma; where a channel would leave [0, 1], all three are shortened alike. Cut off channel by channel
    instead, a colour would change the luma that was fused, and take fine structures of the fixed image with it.

    Args:
        fused: (B, 1, H, W) in [0, 1].
        aligned: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1], of the luma `fused` and of the hue of `aligned`.
    """
    difference = aligned - rgb_to_grayscale(aligned)
    room = torch.where(difference > 0, 1 - fused, fused)
    share = (room / difference.abs().clamp_min(1e-6)).amin(dim=1, keepdim=True).clamp_max(1)
    return (fused + share * difference).clamp(0, 1)
