"""Align pairs that lie far apart by starting from other poses of the moving image (multi-start).

The network was trained on shifts to 12 px and rotations to 12 degrees. Larger ones show in the disagreement of the
averaged estimates. The first result usually finds a part of them, so the registration starts again from its affine
part. If that is not enough, it starts from rotated poses. The disagreement chooses between the starts. A brain without
structure can make wrong estimates agree. So another start also needs at least as much mutual information as before.
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
from models.edarfusion import TRAINED_SIDE
from models.outputs import Output
from utils.geometry.affine import affine_matrix, affine_part, flow_of, turn_about
from utils.geometry.foreground import as_weight, channel_means, foreground
from utils.geometry.warp import compose, warp

FAR = 10.0
"""Mean length of a large affine part in the head, px of an image of `TRAINED_SIDE`. Usual deformations have 2 to 3, at
most 6."""

SETTLED, MOST = 3.0, 4
"""The registration starts again until it finds less than the first value, px, at most as often as the second."""

TURNS, UNSURE = (-15, 15, -30, 30), 0.6
"""Degrees of rotated starts, and the disagreement, px, above which they are tried."""

AGREED, BETTER, BETTER_FAR = 0.7, 0.75, 0.9
"""Limits for keeping a rotated start: the disagreement at its end, px, and its doubt relative to that of the unrotated
start. The third value replaces the second if the unrotated start found a large displacement. The first one also holds
for a large displacement that only a new start has found."""

BEGINNING = 0.25
"""Weight of the disagreement at a start, added to that at its end: the doubt of the start.

All values were chosen on validation pairs (experiment 96 in docs/experiments.md)."""

Estimate = Callable[[Tensor], Output]
"""A function that aligns and fuses a moving image (1, 1, H, W) with the fixed one, by averaged estimates."""


class _Found(NamedTuple):
    """Result of one start. Its flows include the start. `length` is the mean length of the affine part found beyond the
    start, px of an image of `TRAINED_SIDE`.
    """

    output: Output
    length: float


def register_from_afar(
    model: Callable[[Tensor, Tensor], Output], fixed: Tensor, moving: Tensor, first: Output
) -> Output:
    """Align a pair again from its first result, or from a rotated start if the estimates agree clearly better there.

    Args:
        model: aligns and fuses by averaged estimates.
        fixed, moving: (1, 1, H, W) in [0, 1].
        first: result of the model for the pair as it lies.

    Returns:
        `first` if its disagreement leaves no doubt or no other start was kept. Otherwise the result of the kept start.
        Its flows include the start. Its disagreement is that of `first`, so that the pair is named in any case. All
        else belongs to the moving image at the start.
    """
    if first.disagreement.item() <= DOUBTFUL:
        return first
    estimate = partial(model, fixed)
    settled = _settle(estimate, moving, first)
    # A new start may find a displacement that the first estimate has missed.
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
    """Return whether the aligned image shares at least as much information with the fixed one as the others do.

    The measure is normalised mutual information at a quarter of the resolution, inside all heads. It cannot tell
    alignments that differ by a px or two, but it can tell poses.
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
    """Align from a start, a matrix (3, 3): p -> start p."""
    size, matrices = tuple(moving.shape[2:]), (start, torch.linalg.inv(start))
    forward, back = (flow_of(matrix, size).to(moving.device) for matrix in matrices)
    output = estimate(warp(moving, forward))
    flow, inverse_flow = compose(forward, output.flow), compose(output.inverse_flow, back)
    return _Found(output._replace(flow=flow, inverse_flow=inverse_flow), _length(output))


def _settle(estimate: Estimate, moving: Tensor, output: Output) -> Output:
    """Start again from the affine part of the result, until little more is found."""
    for _ in range(MOST):
        head = foreground(output.aligned, tuple(moving.shape[2:]))
        output, length = _begin(estimate, moving, affine_matrix(output.flow, head))
        if length < SETTLED:
            break
    return output


def _doubt(start: Output, end: Output) -> float:
    """Combine the disagreements at a start and at its end, px."""
    return BEGINNING * start.disagreement.item() + end.disagreement.item()


def _length(output: Output) -> float:
    """Return the mean length of the affine part of a flow in the head, px of an image of `TRAINED_SIDE`."""
    size = tuple(output.flow.shape[2:])
    head = as_weight(foreground(output.aligned, size))
    length = channel_means(affine_part(output.flow, head).norm(dim=1, keepdim=True), head).item()
    return length * 2 * TRAINED_SIDE / sum(size)
