"""Pairs that lie far apart: the registration begun anew from other poses of the moving image (multi-start).

The network has learned shifts to 12 px and turns to 12 degrees. What is larger shows in the disagreement of the
estimates that the result is the mean of. A part of it is found nevertheless, so the registration begins anew from
there; and a head that is turned too far for that may be found from a start that is turned as well. Which start was
right is told by the disagreement again. A brain that shows nothing may make wrong estimates agree, so a start is only
kept if the images also tell each other more than they did before.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.metrics import normalised_mutual_information
from evaluation.metrics.displacement import DOUBTFUL
from models.edarfusion import TRAINED_SIDE, Output
from utils.geometry.affine import affine_matrix, affine_part, flow_of, turn_about
from utils.geometry.foreground import as_weight, channel_means, foreground
from utils.geometry.warp import compose, warp

FAR = 10.0
"""Mean length of a displacement field's affine part in the head from which on it counts as large, px of frames of
`TRAINED_SIDE`. Of usual deformations it is 2 to 3, at most 6."""

SETTLED, MOST = 3.0, 4
"""The registration begins anew until what it finds is shorter than the first, px, but no more often than the second."""

TURNS, UNSURE = (-15, 15, -30, 30), 0.6
"""Degrees of further starts, and the disagreement that must be left where beginning anew has led for them, px."""

AGREED, BETTER, BETTER_FAR = 0.7, 0.75, 0.9
"""A turned start is kept where the disagreement at its end is below the first, px, and its doubt below the second times
that of the start that is not turned; the third times, where that one found a large displacement. Below the first must
also end what only beginning anew has found to be a large one."""

BEGINNING = 0.25
"""How much the disagreement at the start adds to that at the end, to make up the doubt of a start.

All were chosen on validation pairs (experiment 96 in docs/experiments.md)."""

Estimate = Callable[[Tensor], Output]
"""What aligns and fuses a moving image (1, 1, H, W) with the fixed one, by averaged estimates."""


class _Found(NamedTuple):
    """What was found from a start: flows with the start in them, and the mean length of the affine part that was found
    beyond the start, px of frames of `TRAINED_SIDE`.
    """

    output: Output
    length: float


def register_from_afar(
    model: Callable[[Tensor, Tensor], Output], fixed: Tensor, moving: Tensor, first: Output
) -> Output:
    """Align a pair anew from where the first estimates led, or from a turned start where those agree clearly better.

    Args:
        model: aligns and fuses, by averaged estimates.
        fixed, moving: (1, 1, H, W) in [0, 1].
        first: what the model makes of them as they lie.

    Returns:
        `first` itself where its disagreement leaves no doubt, or no other start was kept. Else what the model found
        from the start that was: its flows include the start, the disagreement is that of `first`, as what was far apart
        is to be looked at however well it ended, and all else is of the moving image as it lay at the start.
    """
    if first.disagreement.item() <= DOUBTFUL:
        return first
    estimate = partial(model, fixed)
    settled = _settle(estimate, moving, first)
    # Beginning anew may also find the way that the first estimate had missed altogether.
    far = _length(first) > FAR or (_length(settled) > FAR and settled.disagreement.item() < AGREED)
    kept = settled if far else first
    if settled.disagreement.item() > UNSURE:
        head = foreground(fixed, tuple(fixed.shape[2:]))
        least, turned = math.inf, settled
        for degrees in TURNS:  # one by one, as images may be large
            start = _begin(estimate, moving, turn_about(head, degrees)).output
            end = _settle(estimate, moving, start)
            if (doubt := _doubt(start, end)) < least:
                least, turned = doubt, end
        better = least < (BETTER_FAR if far else BETTER) * _doubt(first, settled)
        if better and turned.disagreement.item() < AGREED:
            kept = turned
    if kept is first or not _tells_more(fixed, kept.aligned, [moving, first.aligned]):
        return first
    return kept._replace(disagreement=first.disagreement)


def _tells_more(fixed: Tensor, aligned: Tensor, others: list[Tensor]) -> bool:
    """Whether the fixed image and an aligned one have no less information in common than it has with the others.

    By normalised mutual information at a quarter of the resolution, inside the heads of all. It is no measure of a good
    alignment to a px or two, but of a pose.
    """
    images = [fixed, aligned, *others]
    heads = foreground(torch.cat(images).amax(dim=0, keepdim=True), tuple(side // 4 for side in fixed.shape[2:]))
    mask = heads[0, 0].cpu().numpy() > 0.5
    if not mask.any():
        return False
    quarters = [F.adaptive_avg_pool2d(image, heads.shape[2:])[0, 0].cpu().numpy() for image in images]
    shared = [normalised_mutual_information(quarters[0], other, mask) for other in quarters[1:]]
    return shared[0] >= max(shared[1:])


def _begin(estimate: Estimate, moving: Tensor, start: Tensor) -> _Found:
    """Align from the start p -> start p, (3, 3)."""
    size, matrices = tuple(moving.shape[2:]), (start, torch.linalg.inv(start))
    there, back = (flow_of(matrix, size).to(moving.device) for matrix in matrices)
    found = estimate(warp(moving, there))
    flow, inverse_flow = compose(there, found.flow), compose(found.inverse_flow, back)
    return _Found(found._replace(flow=flow, inverse_flow=inverse_flow), _length(found))


def _settle(estimate: Estimate, moving: Tensor, output: Output) -> Output:
    """Begin anew from the affine part of what was found, until little more is."""
    for _ in range(MOST):
        head = foreground(output.aligned, tuple(moving.shape[2:]))
        output, length = _begin(estimate, moving, affine_matrix(output.flow, head))
        if length < SETTLED:
            break
    return output


def _doubt(start: Output, end: Output) -> float:
    """How little the estimates agree at a start and where it led, px."""
    return BEGINNING * start.disagreement.item() + end.disagreement.item()


def _length(output: Output) -> float:
    """Mean length in the head of the affine part of a result's flow, px of frames of `TRAINED_SIDE`."""
    size = tuple(output.flow.shape[2:])
    head = as_weight(foreground(output.aligned, size))
    length = channel_means(affine_part(output.flow, head).norm(dim=1, keepdim=True), head).item()
    return length * 2 * TRAINED_SIDE / sum(size)
