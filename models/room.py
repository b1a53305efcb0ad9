"""The room that what the moving image shows leaves for the fused luma, so that bone stays bone and a colour keeps its
meaning.

A colour of the tracer says how much tracer there is by its hue and saturation, and where the scale ends in white by its
brightness. At every luma below that of the same colour at full brightness, the colour can be shown with its hue and all
of its saturation; above, it must be mixed with white. So there is an interval of luma in which a reader still reads the
colour, and the fixed image's detail is planned within it.
"""

import torch
from kornia.color import rgb_to_grayscale
from torch import Tensor

SATURATION_KEPT = 0.58
"""Share of a strong colour's saturation that the room leaves at least; in the mean much more is left, as the fusion
pays for what it takes (`losses.fusion.saturation_loss`)."""

STRONG = (0.1, 0.4)
"""Chroma (largest minus smallest channel) from which a colour begins to count, and at which it counts in full."""

BRIGHT = (0.6, 0.9)
"""Luma from which bone, or white on a colour scale, begins to count, and at which it counts in full."""

LEAST_BRIGHT, LEAST_COLOURED = 0.78, 0.45
"""Share of its luma that bright white keeps at least, and a strong colour."""


def room_of(moving: Tensor) -> Tensor:
    """Compute the room that an image leaves.

    Args:
        moving: (B, 1, H, W) or (B, 3, H, W) in [0, 1], grey or colour.

    Returns:
        (B, 3, H, W) in [0, 1]: lowest and highest fused luma, and 1 for images whose colour shows the tracer, so that
        luma need not. Of a grey image, where it is not bright, these are 0, 1 and 0.
    """
    color = moving if moving.shape[1] == 3 else moving.expand(-1, 3, -1, -1)
    luma = rgb_to_grayscale(color)
    value, least = color.amax(dim=1, keepdim=True), color.amin(dim=1, keepdim=True)
    strength = smoothstep(value - least, *STRONG)
    saturation = (value - least) / value.clamp_min(1e-3)
    bright = LEAST_BRIGHT * (1 - saturation) * smoothstep(luma, *BRIGHT)
    low = luma * torch.maximum(bright, LEAST_COLOURED * strength * saturation)
    high = 1 - SATURATION_KEPT * strength * (1 - luma / value.clamp_min(1e-3))
    colored = (strength.amax(dim=(1, 2, 3), keepdim=True) > 0).to(low).expand_as(low)
    return torch.cat((low, torch.maximum(low, high), colored), dim=1)


def in_color(fused: Tensor, aligned: Tensor) -> Tensor:
    """Show a fused luma in the colours of the tracer.

    Hue is the tracer's everywhere; so is the saturation of strong colours up to the luma of the same colour at full
    brightness, and `SATURATION_KEPT` of it in the room that `room_of` leaves. Weak colours get no stronger where the
    fused image is brighter than the tracer: they would make much of next to nothing.

    Args:
        fused: (B, 1, H, W) in [0, 1].
        aligned: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1], of the luma `fused`.
    """
    luma = rgb_to_grayscale(aligned)
    value, least = aligned.amax(dim=1, keepdim=True), aligned.amin(dim=1, keepdim=True)
    ratio = fused / luma.clamp_min(1e-3)
    strength = smoothstep(value - least, *STRONG)
    share = torch.where(ratio > 1, 1 + strength * (ratio - 1), ratio)
    # Beyond, the brightest channel would leave the range.
    share = torch.minimum(share, (1 - fused) / (value - luma).clamp_min(1e-6))
    return (fused + share * (aligned - luma)).clamp(0, 1)


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


def smoothstep(values: Tensor, start: float, full: float) -> Tensor:
    """Rise from 0 at `start` to 1 at `full` along a cubic without kinks; values of any shape (B, C, H, W)."""
    x = ((values - start) / (full - start)).clamp(0, 1)
    return x * x * (3 - 2 * x)
