"""Fit the fused luma of a coloured SPECT pair to the pair, within the room that the tracer's colours leave.

One network serves all pairs. SPECT covers the brain with strong colours, which leave its luma little room. What shows
most of both images there differs from pair to pair. So some steps of gradient descent improve the network's answer by
losses of the fusion and a price on slopes that neither image has. The losses see the pair as it was aligned.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.color import rgb_to_grayscale
from torch import Tensor

from losses.fusion import (
    edge_scorer,
    information_scorer,
    intensity_error,
    local_mean,
    saturation_loss,
    tone_error,
    visibility_scorer,
)
from models.edarfusion import rescale, scale_power
from models.fusion import plain_fusion
from models.room import room_of
from utils.filters import Padder, gradient_magnitude, resize

EDGES, INFORMATION, VISIBILITY, SATURATION, TONE, INTENSITY = 14.0, 7.5, 40.0, 8.0, 4.0, 2.0
"""Weights of the losses of `losses.fusion`. Only their ratios count."""

INVENTED = 600.0
"""Weight of slopes that neither image has. Without it even tissue breaks into islands that look like findings."""

STRIDE, MOMENTUM, STEEPEST = 0.12, 0.6, 1.5
"""First length of a step, share of the step before in each, and bound of slopes, in root mean squares."""

SMOOTH = (5, 0.7)
"""Window and sigma (px) that blur the changes, so that no pixel changes by itself."""

MARGIN = 0.02
"""A pixel is taken to begin at least this share of the room away from its ends, so that it can move."""

DARK = 0.05
"""Grey value of both images below which changes fade: the background stays black."""

LEAST_SIDE = 32
"""Shorter side, px, below which no image is reduced."""

MULTIPLE = 4
"""Sides are padded to this multiple, which the means of `plain_fusion` need."""


class _Start(NamedTuple):
    """Where the luma may go from here, each (B, 1, H, W).

    Attributes:
        fused: the luma to start from.
        low, high: bounds of its room, moved to the start where that lies outside.
        place: where it lies in its room, as a logit.
        share: of a change that counts, 0 to 1.
    """

    fused: Tensor
    low: Tensor
    high: Tensor
    place: Tensor
    share: Tensor

    @classmethod
    def of(cls, fixed: Tensor, luma: Tensor, room: Tensor, fused: Tensor) -> "_Start":
        """Start from `fused`; all as in `fit_luma`, but `luma` of the aligned image and its `room`."""
        low, high, _ = room.split(1, dim=1)
        place = torch.logit(((fused - low) / (high - low).clamp_min(1e-4)).clamp(MARGIN, 1 - MARGIN))
        share = (torch.maximum(fixed, luma) / DARK).clamp_max(1)
        return cls(fused, torch.minimum(low, fused), torch.maximum(high, fused), place, share)

    def moved(self, change: Tensor) -> Tensor:
        """Move the luma within its room; `change` is that of the logits."""
        move = torch.sigmoid(self.place + change) - torch.sigmoid(self.place)
        return (self.fused + self.share * (self.high - self.low) * move).clamp(self.low, self.high)


def fit_luma(fixed: Tensor, aligned: Tensor, fused: Tensor, steps: int) -> Tensor:
    """Improve the fused luma of coloured pairs.

    The steps see the images at the power of two of their size whose sides are nearest to the 256 px of the training,
    or at their own if they are smaller. The change is enlarged, so that large images take little longer.

    Args:
        fixed: float32 (B, 1, H, W) in [0, 1].
        aligned: float32 (B, 3, H, W) in [0, 1], the aligned moving image in its colours.
        fused: float32 (B, 1, H, W) in [0, 1], the luma to start from.
        steps: how many; 0 returns `fused`.

    Returns:
        (B, 1, H, W) in [0, 1], without gradient.
    """
    if not steps:
        return fused
    size = tuple(fused.shape[2:])
    power = max(0, min(scale_power(size), int(math.log2(min(size) / LEAST_SIDE))))
    padder = Padder(size, MULTIPLE * 2**power)
    # Gradients are needed here, whatever the caller has switched off.
    with torch.inference_mode(False), torch.enable_grad():
        images = [padder.pad(image.detach().clone()) for image in (fixed, aligned, fused)]
        change = resize(_descend(*(rescale(image, power) for image in images), steps), images[0].shape[2:])
        fixed, aligned, fused = images
        return padder.unpad(_Start.of(fixed, rgb_to_grayscale(aligned), room_of(aligned), fused).moved(change))


def _descend(fixed: Tensor, aligned: Tensor, fused: Tensor, steps: int) -> Tensor:
    """Find the change of the logits, (B, 1, H, W), for images as those of `fit_luma`."""
    room, luma = room_of(aligned), rgb_to_grayscale(aligned)
    start, target = _Start.of(fixed, luma, room, fused), plain_fusion(fixed, luma, room)
    scorers = [prepare(fixed, luma) for prepare in (edge_scorer, information_scorer, visibility_scorer)]
    weights = EDGES, INFORMATION, VISIBILITY, SATURATION, TONE, INTENSITY, INVENTED
    # An edge may move by a pixel where both images have one.
    steepest = F.max_pool2d(torch.maximum(gradient_magnitude(fixed), gradient_magnitude(luma)), 3, 1, 1)

    def loss(image: Tensor) -> Tensor:
        parts = [score(image) for score in scorers]
        parts += [saturation_loss(room, image)[0], tone_error(target, image)[0], intensity_error(target, image)[0]]
        parts.append((gradient_magnitude(image) - steepest).clamp_min(0).mean(dim=(1, 2, 3)))
        return sum(weight * part for weight, part in zip(weights, parts, strict=True)).sum()

    change, past = torch.zeros_like(fused), torch.zeros_like(fused)
    for step in range(steps):
        change.requires_grad_()
        (slope,) = torch.autograd.grad(loss(start.moved(local_mean(change, *SMOOTH))), change)
        # Slopes differ a thousandfold between pairs, so only their pattern counts.
        length = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        past = MOMENTUM * past - (slope / length).clamp(-STEEPEST, STEEPEST)
        change = change.detach() + STRIDE * (1 - step / steps) * past
    return local_mean(change, *SMOOTH)
