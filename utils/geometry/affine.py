"""Affine maps as displacement fields, and the affine part of displacement fields.

A matrix (3, 3) maps homogeneous coordinates (x, y, 1), px from the image's centre.
"""

import math

import torch
from torch import Tensor

from utils.geometry.foreground import as_weight, channel_means


def affine_flow(size: tuple[int, int], matrix: Tensor, shift: Tensor, stride: int = 1) -> Tensor:
    """Make the displacement field of the affine map q = centre + matrix (p - centre) + shift.

    Args:
        size: height and width of the full image, px.
        matrix: (B, 2, 2), acting on (x, y).
        shift: (B, 2), (x, y) in px of the full image.
        stride: grid spacing, px.

    Returns:
        (B, 2, H / stride, W / stride), in pixels of its own grid.
    """
    height, width = size[0] // stride, size[1] // stride
    y = torch.arange(height, dtype=torch.float32, device=matrix.device) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32, device=matrix.device) - (width - 1) / 2
    points = torch.stack(torch.meshgrid(x, y, indexing="xy")).view(1, 2, -1)
    moved = (matrix - torch.eye(2, device=matrix.device)) @ points + shift[:, :, None] / stride
    return moved.view(-1, 2, height, width)


def flow_of(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Make the displacement field (1, 2, *size), px, of a matrix (3, 3)."""
    return affine_flow(size, matrix[None, :2, :2], matrix[None, :2, 2])


def affine_part(flow: Tensor, weight: Tensor) -> Tensor:
    """Fit an affine displacement field to a flow by weighted least squares.

    Args:
        flow: (B, 2, h, w), px.
        weight: (B, 1, h, w), above 0.

    Returns:
        (B, 2, h, w), px.
    """
    axes = (torch.linspace(-1, 1, side, device=flow.device) for side in flow.shape[2:])
    y, x = (axis - channel_means(axis.expand_as(weight), weight) for axis in torch.meshgrid(*axes, indexing="ij"))
    xx, xy, yy = (channel_means(product, weight) for product in (x * x, x * y, y * y))
    along_x, along_y = (channel_means(axis * flow, weight) for axis in (x, y))
    slope_x, slope_y = yy * along_x - xy * along_y, xx * along_y - xy * along_x
    return channel_means(flow, weight) + (slope_x * x + slope_y * y) / (xx * yy - xy * xy)


def affine_matrix(flow: Tensor, mask: Tensor) -> Tensor:
    """Fit a matrix (3, 3), as `flow_of` takes it, to a displacement field.

    Args:
        flow: (1, 2, H, W), px.
        mask: (1, 1, H, W), 1 where the field counts.
    """
    field = affine_part(flow, as_weight(mask))[0].cpu()
    height, width = field.shape[1:]
    corner, right, below, centre = field[:, 0, 0], field[:, 0, -1], field[:, -1, 0], field.mean(dim=(1, 2))
    matrix = torch.eye(3)
    matrix[:2] += torch.stack(((right - corner) / (width - 1), (below - corner) / (height - 1), centre), dim=1)
    return matrix


def turn_about(mask: Tensor, degrees: float) -> Tensor:
    """Make the matrix (3, 3) of a rotation about a mask's centre of mass, from the x to the y axis.

    Args:
        mask: (1, 1, H, W). If it is 0 everywhere, the image's centre is used.
        degrees: angle of the rotation.
    """
    weights = as_weight(mask)[0, 0].cpu()
    y, x = (torch.arange(side) - (side - 1) / 2 for side in weights.shape)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn, shift = torch.eye(3), torch.eye(3)
    turn[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    shift[:2, 2] = torch.stack(((weights * x).sum(), (weights * y[:, None]).sum())) / weights.sum()
    return shift @ turn @ torch.linalg.inv(shift)
