"""Losses of the registration against known deformations."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.eda_flowreg import CELL, STEP
from models.outputs import Registration
from utils.filters import halved, sobel
from utils.geometry.foreground import foreground, masked_mean
from utils.geometry.warp import compose, resize_flow, warp

BACKGROUND = 0.02  # weight of the flow outside the head, where any smooth continuation is right


class RegistrationLoss(NamedTuple):
    """Weighted sum and its components. The field names are the columns of the training log."""

    total: Tensor
    flow: Tensor
    edges: Tensor
    refined_flow: Tensor
    refined_edges: Tensor
    matching: Tensor
    similarity: Tensor
    smoothness: Tensor
    inverse: Tensor


class RegistrationWeights(NamedTuple):
    """Weights of the components of `RegistrationLoss`."""

    flow: float = 1.0
    edges: float = 2.0
    refined_flow: float = 1.0
    refined_edges: float = 2.0
    matching: float = 0.5
    similarity: float = 30.0
    smoothness: float = 0.5
    inverse: float = 0.1


def edge_strength(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute the structure tensor of each cell, relative to the mean edge strength of the image.

    Args:
        image: (B, 1, H, W).
        size: height and width of the grid of cells.

    Returns:
        (B, 3, *size): products xx, xy and yy of the gradient's components.
    """
    x, y = sobel(halved(image))
    tensor = F.adaptive_avg_pool2d(torch.cat((x * x, x * y, y * y), dim=1), size)
    strength = (tensor[:, 0] + tensor[:, 2]).sqrt().mean(dim=(1, 2)).clamp_min(1e-6)
    return tensor / strength.square().view(-1, 1, 1, 1)


def edge_error(error: Tensor, edges: Tensor) -> Tensor:
    """Average the component of a flow's error across the edges of an image, weighted by the strength of the edges.

    To first order this is the intensity error that the wrong flow leaves, relative to the image's edges. An error along
    the skull costs nothing, an error across it costs most. Unlike the intensity error it keeps growing where the edges
    no longer overlap.

    Args:
        error: (B, 2, h, w), px of the full image.
        edges: (B, 3, h, w), `edge_strength` of the truly aligned image.

    Returns:
        Scalar, px.
    """
    xx, xy, yy = edges.unbind(1)
    e_x, e_y = error.unbind(1)
    # Rounding can make the square negative where the error runs along a strong straight edge. The root has no slope at
    # zero, so a hundredth of a px is added.
    square = xx * e_x * e_x + 2 * xy * e_x * e_y + yy * e_y * e_y
    return (square.clamp_min(0) + 1e-4).sqrt().mean()


def matching_error(scores: Tensor, true_flow: Tensor, mask: Tensor, radius: int) -> Tensor:
    """Compute the cross-entropy of the matching scores against the true displacement.

    The target spreads over the four candidates around the true displacement with bilinear weights. Displacements
    beyond the candidates count as the nearest one.

    Args:
        scores: (B, (2 radius + 1)^2, h, w), log-scores in the order of `models.eda_flowreg.correlate`.
        true_flow: (B, 2, h, w), px of the full image.
        mask: (B, 1, h, w).
        radius: of the candidates.

    Returns:
        Scalar, nats.
    """
    count = 2 * radius + 1
    position = (true_flow / STEP + radius).clamp(0, count - 1 - 1e-3)
    low = position.floor()
    share = position - low
    x, y = low.long().split(1, dim=1)
    corner = y * count + x
    corners = torch.cat((corner, corner + 1, corner + count, corner + count + 1), dim=1)
    along_x, along_y = (torch.cat((1 - part, part), dim=1) for part in share.split(1, dim=1))
    weights = (along_y[:, :, None] * along_x[:, None]).flatten(1, 2)
    likelihood = (weights * F.log_softmax(scores.float(), dim=1).gather(1, corners)).sum(dim=1, keepdim=True)
    return masked_mean(-likelihood, mask)


def smoothness(flow: Tensor) -> Tensor:
    """Average the squared second differences of a flow (B, 2, H, W). An affine flow costs nothing."""
    x = flow[..., 2:] - 2 * flow[..., 1:-1] + flow[..., :-2]
    y = flow[..., 2:, :] - 2 * flow[..., 1:-1, :] + flow[..., :-2, :]
    return x.square().mean() + y.square().mean()


def inverse_error(flow: Tensor, inverse_flow: Tensor, mask: Tensor) -> Tensor:
    """Return the mean length (px) of `flow` composed with `inverse_flow`, both (B, 2, H, W) in px of their grid."""
    return masked_mean(compose(flow, inverse_flow).norm(dim=1, keepdim=True), mask)


def registration_loss(
    registration: Registration,
    moving: Tensor,
    moving_aligned: Tensor,
    fixed: Tensor,
    true_flow: Tensor,
    true_inverse: Tensor,
    weights: RegistrationWeights = RegistrationWeights(),
) -> RegistrationLoss:
    """Compare a registration with the true deformation.

    Args:
        registration: result of `EDARFusion.register` for (fixed, moving) with `both=True`.
        moving, moving_aligned, fixed: (B, 1, H, W) in [0, 1].
        true_flow, true_inverse: (B, 2, h, w), px of their own grid. Resized to the images, `true_flow` warps `moving`
            to `moving_aligned`.
        weights: weights of the components.

    Returns:
        `RegistrationLoss` of scalars: flow (px, mean absolute error of a component) and edges (px) of the matched flow
        in both directions, summed over the scales, and of the refined one; matching (nats, summed over scales and
        windows); similarity (mean absolute grey difference of the aligned image and the truth), smoothness (px^2),
        inverse (px).
    """
    last, refined = registration.steps[-1], registration.refined
    size = last.flow.shape[2:]
    truth = CELL * torch.cat((resize_flow(true_flow, size), resize_flow(true_inverse, size)))
    # The inverse flow lies on the moving image's grid. The head is a few px off there, less than the foreground's 8 px.
    mask = torch.cat((foreground(moving_aligned, size), foreground(fixed, size))) + BACKGROUND
    flow = sum(masked_mean((step.flow - truth).abs(), mask) for step in registration.steps)
    strength = edge_strength(torch.cat((moving_aligned, moving)), size)
    edges = sum(edge_error(step.flow - truth, strength) for step in registration.steps)
    first = slice(len(moving))
    refined_flow = masked_mean((refined - truth[first]).abs(), mask[first])
    refined_edges = edge_error(refined - truth[first], strength[first])
    matching = sum(
        matching_error(scores, truth - step.before.detach(), mask, step.radius)
        for step in registration.steps
        for scores in step.scores
    )
    forward, backward = last.flow.chunk(2)
    half = (moving.shape[2] // 2, moving.shape[3] // 2)
    aligned = warp(halved(moving), resize_flow(refined / CELL, half))
    similarity = (aligned - halved(moving_aligned)).abs().mean()
    smooth = smoothness(last.flow) + smoothness(refined)
    inverse = CELL * inverse_error(forward / CELL, backward / CELL, mask[first])
    parts = (flow, edges, refined_flow, refined_edges, matching, similarity, smooth, inverse)
    return RegistrationLoss(sum(w * part for w, part in zip(weights, parts, strict=True)), *parts)
