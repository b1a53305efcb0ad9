"""Fit the fused luma of a coloured pair to the pair, within the room that the tracer's colours leave.

The fusion network answers at once and for all pairs alike. Colours leave its luma little room, and what is best shown
there differs from pair to pair. Some steps of gradient descent therefore improve its answer by losses that it was
trained with. They see the pair as it was aligned and nothing else.
"""

import math
from typing import NamedTuple

import torch
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
from models.edarfusion import TRAINED_SIDE, rescale
from models.fusion import plain_fusion
from models.room import room_of
from utils.filters import Padder, resize

STEPS = 24
"""Steps for each pair. More of them show more contrast and more of the tracer's saturation."""

EDGES, INFORMATION, VISIBILITY, SATURATION, TONE, INTENSITY = 14.0, 6.4, 40.0, 14.0, 4.0, 2.0
"""Weights of the losses. Only their ratios count."""

STRIDE, MOMENTUM, STEEPEST = 0.12, 0.6, 1.5
"""First length of a step, share of the step before in each, and slope (in root mean squares) beyond which none counts."""

SMOOTH = (5, 0.7)
"""Window and sigma (px) of the changes. A pattern of single pixels lowers the losses, and no reader wants it."""

MARGIN = 0.02
"""A pixel begins at least this share of the room away from its ends, so that it can move."""

DARK = 0.05
"""Grey value of both images below which changes fade: the background stays black."""


class _Start(NamedTuple):
    """Where the luma may go from here, each (B, 1, H, W).

    Attributes:
        fused: the luma to start from.
        place: where it lies in its room, as a logit.
        span: size of the room, 0 to 1.
        share: of a change that counts, 0 to 1.
    """

    fused: Tensor
    place: Tensor
    span: Tensor
    share: Tensor

    def moved(self, change: Tensor) -> Tensor:
        """Move the luma within its room; `change` is that of the logits."""
        move = torch.sigmoid(self.place + change) - torch.sigmoid(self.place)
        return self.fused + self.share * self.span * move


def fit_luma(fixed: Tensor, aligned: Tensor, fused: Tensor, steps: int = STEPS) -> Tensor:
    """Improve the fused luma of coloured pairs.

    The steps see the images at the power of two of their size whose sides are nearest to the 256 px of the training,
    or at their own if they are smaller. Changes are enlarged, so that large images take little longer.

    Args:
        fixed: (B, 1, H, W) in [0, 1].
        aligned: (B, 3, H, W) in [0, 1], the aligned moving image in its colours.
        fused: (B, 1, H, W) in [0, 1], the luma to start from.
        steps: how many; 0 returns `fused`.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    if not steps:
        return fused
    size = tuple(fused.shape[2:])
    power = max(0, round(math.log2(sum(size) / (2 * TRAINED_SIDE))))
    padder = Padder(size, 2**power)
    # Gradients are needed here, whatever the caller has switched off.
    with torch.inference_mode(False), torch.enable_grad():
        images = [image.detach().clone() for image in (fixed, aligned, fused)]
        change = _descend(*(rescale(padder.pad(image), power) for image in images), steps)
        return _start(*images).moved(padder.unpad(resize(change, padder.pad(images[2]).shape[2:]))).clamp(0, 1)


def _start(fixed: Tensor, aligned: Tensor, fused: Tensor) -> _Start:
    low, high, _ = room_of(aligned).split(1, dim=1)
    span = (high - low).clamp_min(1e-4)
    place = torch.logit(((fused - low) / span).clamp(MARGIN, 1 - MARGIN))
    return _Start(fused, place, span, (torch.maximum(fixed, rgb_to_grayscale(aligned)) / DARK).clamp_max(1))


def _descend(fixed: Tensor, aligned: Tensor, fused: Tensor, steps: int) -> Tensor:
    """Find the change of the logits, (B, 1, H, W), for images as those of `fit_luma`."""
    room, luma, start = room_of(aligned), rgb_to_grayscale(aligned), _start(fixed, aligned, fused)
    target = plain_fusion(fixed, luma, room)
    scorers = [prepare(fixed, luma) for prepare in (edge_scorer, information_scorer, visibility_scorer)]
    weights = EDGES, INFORMATION, VISIBILITY, SATURATION, TONE, INTENSITY

    def loss(image: Tensor) -> Tensor:
        parts = [score(image) for score in scorers]
        parts += [saturation_loss(room, image)[0], tone_error(target, image)[0], intensity_error(target, image)[0]]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True)).sum()

    change, past = torch.zeros_like(fused), torch.zeros_like(fused)
    for step in range(steps):
        change.requires_grad_()
        (slope,) = torch.autograd.grad(loss(start.moved(local_mean(change, *SMOOTH))), change)
        # Lengths of gradients differ a thousandfold between pairs, so only their form counts.
        length = slope.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
        past = MOMENTUM * past - (slope / length).clamp(-STEEPEST, STEEPEST)
        change = change.detach() + STRIDE * (1 - step / steps) * past
    return local_mean(change, *SMOOTH)
