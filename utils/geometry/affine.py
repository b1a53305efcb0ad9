"""Affine maps as displacement fields, and the affine part of displacement fields.

A map of homogeneous px from the image's centre is a matrix (3, 3): p -> matrix p, x before y.
"""

import math

import torch
from torch import Tensor

from utils.geometry.foreground import as_weight, channel_means


def affine_flow(size: tuple[int, int], matrix: Tensor, shift: Tensor, stride: int = 1) -> Tensor:
    """Displacement field of the affine map q = centre + matrix (p - centre) + shift.

    Args:
        size: height and width of the full image, px.
        matrix: (B, 2, 2), acting on (x, y).
        shift: (B, 2), (x, y) in px of the full image.
        stride: grid spacing, px.

    Returns:
        (B, 2, H / stride, W / stride), in pixels of its own grid.
    """
    height, width = size[0] // stride, size[1] // stride
    y = torch.arange(height, dtype=torch.float32) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32) - (width - 1) / 2
    points = torch.stack(torch.meshgrid(x, y, indexing="xy")).view(1, 2, -1)
    moved = (matrix - torch.eye(2)) @ points + shift[:, :, None] / stride
    return moved.view(-1, 2, height, width)


def flow_of(matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """The displacement field (1, 2, *size), px, of an affine map (3, 3), of homogeneous px from the image's centre."""
    return affine_flow(size, matrix[None, :2, :2], matrix[None, :2, 2])


def affine_part(flow: Tensor, weight: Tensor) -> Tensor:
    """The affine displacement field that is nearest to a flow in the weighted mean square.

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
    """The affine map that is nearest to a displacement field: (3, 3), as of `flow_of`.

    Args:
        flow: (1, 2, H, W), px.
        mask: (1, 1, H, W), 1 where it counts.
    """
    field = affine_part(flow, as_weight(mask))[0].cpu()
    height, width = field.shape[1:]
    corner, right, below, centre = field[:, 0, 0], field[:, 0, -1], field[:, -1, 0], field.mean(dim=(1, 2))
    matrix = torch.eye(3)
    matrix[:2] += torch.stack(((right - corner) / (width - 1), (below - corner) / (height - 1), centre), dim=1)
    return matrix


def turn_about(mask: Tensor, degrees: float) -> Tensor:
    """A turn about a mask's centre of mass, from the x to the y axis: (3, 3), as of `flow_of`.

    Args:
        mask: (1, 1, H, W); where it is 0 throughout, the centre is the image's.
        degrees: of the turn.
    """
    weights = as_weight(mask)[0, 0].cpu()
    y, x = (torch.arange(side) - (side - 1) / 2 for side in weights.shape)
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn, shift = torch.eye(3), torch.eye(3)
    turn[:2, :2] = torch.tensor([[cosine, -sine], [sine, cosine]])
    shift[:2, 2] = torch.stack(((weights * x).sum(), (weights * y[:, None]).sum())) / weights.sum()
    return shift @ turn @ torch.linalg.inv(shift)
