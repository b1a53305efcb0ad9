"""Flow-guided fusion under the alignment-consistency map C."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers import ConvBlock, ResidualBlock, as_convolutions_want, conv, zero_conv
from models.room import room_of
from utils.filters import box_mean, halved, resize
from utils.maps import gradient_agreement

AT_ONCE = 8 * 256 * 256
"""Pixels that a CPU fuses at one time: beyond, it spends its time on fetching memory instead of on convolutions."""

REACH = 0.5
"""Largest correction: without a bound it can run away, as a grey value near the end of its room feels little pull."""

GREY_SHARE = 0.8
"""Share of the change of grey pairs that is carried out: in full it weakens small spots that the start shows."""

EMPTY = 0.05
"""Grey value of a pixel, or mean around it, below which there is less and less of an image."""

MEAN, JOINED_MEAN = 5, 7
"""Sides of the windows of a local mean, in blocks of 4 px: of the fixed image under colours, and of two grey images.
Means are taken twice, which is a sigma of 8 and of 11 px: of a lesion of 15 px much is detail."""

ROOM_FOR_DETAIL = 0.6
"""Share of the product of two local means that is taken from their norm: detail needs room where both are bright."""


class Fusion(NamedTuple):
    """Fused image and consistency map C, both (B, 1, H, W) in [0, 1]."""

    fused: Tensor
    consistency: Tensor


def alignment_consistency(fixed: Tensor, aligned: Tensor, reliability: Tensor, gate: Tensor) -> Tensor:
    """Map where edges of both images may be joined: gradients agree, and R and W allow trust.

    C = agreement * T + (1 - T) / 2 with the trust T = (R + W) / 2, which fades to 0 where neither image shows tissue:
    without trust the map says one half, neither yes nor no.

    Args:
        fixed, aligned: (B, 1, H, W) in [0, 1].
        reliability, gate: (B, 1, H, W) in [0, 1].

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    shown = box_mean(torch.maximum(fixed, aligned), 9) / EMPTY
    trust = shown.clamp_max(1) * (reliability + gate) / 2
    return trust * gradient_agreement(fixed, aligned) + (1 - trust) / 2


def plain_fusion(fixed: Tensor, aligned: Tensor, room: Tensor) -> Tensor:
    """Fuse without a network: the start of the network, which sets how bright a place is to be.

    An image is its local mean and the detail around it. The means of two grey images are joined by the root of the sum
    of squares, and drawn down where both are bright; the detail of both is added. Joined pixel by pixel, two bright
    images would be white and hide what is brighter still. Where colour shows the tracer, luma is the fixed image's: its
    local mean is brought into the room, half by cutting it off and half by drawing its range together, and its detail
    is added. Bright detail is added by `changed_within`: cut to the room, it would be lost wherever a mean is bright.

    Args:
        fixed, aligned: (B, 1, H, W) in [0, 1].
        room: (B, 3, H, W), `models.room.room_of` the aligned image.

    Returns:
        (B, 1, H, W) within the room.
    """
    low, high, colored = room.split(1, dim=1)
    wide, other = (_local_mean(image, JOINED_MEAN) for image in (fixed, aligned))
    joined = (wide.square() + other.square() + 1e-12).sqrt() - ROOM_FOR_DETAIL * wide * other
    mean = _local_mean(fixed, MEAN)
    placed = (mean.clamp(low, high) + low + (high - low) * mean) / 2
    start = torch.where(colored > 0, placed, joined.clamp(low, high))
    detail = torch.where(colored > 0, fixed - mean, fixed - wide + aligned - other)
    # Bright detail is drawn together below the bound; dark detail is cut, so that black around the head stays black.
    shown = changed_within(start, detail.clamp_min(0), room) + detail.clamp_max(0)
    return torch.maximum(shown, low)


def _local_mean(image: Tensor, side: int) -> Tensor:
    return resize(box_mean(box_mean(F.avg_pool2d(image, 4), side), side), image.shape[2:])


def changed_within(image: Tensor, change: Tensor, room: Tensor) -> Tensor:
    """Add a change to an image that lies within the room, the less of it the nearer the bound that it leads to.

    A change is nearly kept where the room is much larger, and never reaches the bound. So differences survive that a
    cut would make equal, and there is a gradient wherever there is room.

    Args:
        image, change: (B, 1, H, W).
        room: (B, 3, H, W), `models.room.room_of`.

    Returns:
        (B, 1, H, W) within the room.
    """
    left = torch.where(change > 0, room[:, 1:2] - image, image - room[:, :1]).clamp_min(0)
    share = left / (left.square() + change.square() + 1e-12).sqrt()
    return (image + change * share).clamp(room[:, :1], room[:, 1:2])  # as rounding may leave it


class FlowGuidedFusion(nn.Module):
    """Mixes the fixed and the aligned image with a predicted weight and adds a small predicted correction.

    The result lies within the room that the aligned image leaves (`models.room`), whatever was learned.

    Args:
        channels: width of the network at half the resolution; twice that at a quarter, where it takes in its
            surroundings and the maps that say how far the alignment may be trusted.
        depth: convolutions of a residual block.
    """

    def __init__(self, channels: int, depth: int = 2) -> None:
        super().__init__()
        self.stem = conv(3, channels, kernel=5, stride=2)
        self.down = ConvBlock(channels + 3, 2 * channels, stride=2)
        self.surroundings = nn.Sequential(*(ResidualBlock(2 * channels, depth=depth) for _ in range(2)))
        self.lateral = conv(2 * channels, channels, kernel=1)
        self.block = ResidualBlock(channels, depth=depth)
        self.head = zero_conv(channels, 2 * 4)

    def forward(
        self, fixed: Tensor, aligned: Tensor, reliability: Tensor, gate: Tensor, room: Tensor | None = None
    ) -> Fusion:
        """Fuse a fixed and an aligned image.

        Args:
            fixed, aligned: (B, 1, H, W) in [0, 1], H and W multiples of 4.
            reliability, gate: R and W, (B, 1, h, w).
            room: (B, 3, H, W), `models.room.room_of` the aligned image in colour; by default of the grey one.
        """
        room = room_of(aligned) if room is None else room
        if fixed.device.type == "cpu" and len(fixed) > 1 and fixed.numel() > AT_ONCE:
            most = max(1, AT_ONCE // fixed[0].numel())
            parts = zip(*(x.split(most) for x in (fixed, aligned, reliability, gate, room)), strict=True)
            return Fusion(*map(torch.cat, zip(*(self(*part) for part in parts), strict=True)))
        trust = [resize(map_, fixed.shape[2:]) for map_ in (reliability, gate)]
        consistency = alignment_consistency(fixed, aligned, *trust)
        start = plain_fusion(fixed, aligned, room)
        images = as_convolutions_want(torch.cat((fixed, aligned, start), dim=1))
        x = F.leaky_relu(self.stem(images - 0.25), 0.1, inplace=True)
        # All in one layout; else joining them would move what lies as convolutions want it.
        maps = as_convolutions_want(halved(torch.cat((consistency, *trust), dim=1)))
        around = self.surroundings(self.down(torch.cat((x, maps), dim=1)))
        x = self.block(x + F.interpolate(self.lateral(around), scale_factor=2.0, mode="nearest"))
        # pixel_shuffle, in half of its time: the four pixels of a place lie side by side in memory.
        pixels = self.head(x).float().unflatten(1, (2, 2, 2)).permute(0, 1, 4, 2, 5, 3)
        weight, correction = pixels.flatten(4).flatten(2, 3).split(1, dim=1)
        # At true alignment the start is a good fusion already; the correction sharpens.
        change = REACH * F.softsign(correction / REACH) - torch.sigmoid(weight - 3) * (fixed - aligned).abs()
        share = (torch.maximum(fixed, aligned) / EMPTY).clamp_max(1)  # Black ground stays black.
        share = torch.where(room[:, 2:] > 0, share, GREY_SHARE * share)
        return Fusion(changed_within(start, share * change, room), consistency)
