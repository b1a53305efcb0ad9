"""Random smooth deformations with a known inverse, for training and validation.

The benchmark's recipe (`BENCHMARK`) is uniform noise in [-1, 1] per pixel, blurred by a Gaussian of sigma 16 px and
multiplied by 256 px, plus a small translation. Blurred white noise is a Gaussian random field. It is drawn directly on
a grid of a quarter of the resolution with the same covariance, at a sixteenth of the cost.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.geometry.affine import affine_flow
from utils.imaging.flows import GRID_STRIDE


@dataclass(frozen=True)
class DeformationRange:
    """Ranges of one deformation. Each value is drawn uniformly.

    Attributes:
        amplitude: standard deviation of each component of the random field, px at 256 x 256.
        sigma: Gaussian blur of the noise, px at 256 x 256.
        translation: largest shift along each axis, px at 256 x 256.
        rotation: about the centre, degrees.
        scale: largest relative change of size.
    """

    amplitude: tuple[float, float]
    sigma: tuple[float, float]
    translation: float = 0.0
    rotation: tuple[float, float] = (0.0, 0.0)
    scale: float = 0.0


# 256 px times the standard deviation sqrt(1/3) / (2 sqrt(pi) 16) of blurred uniform noise.
BENCHMARK = DeformationRange(amplitude=(2.606, 2.606), sigma=(16.0, 16.0), translation=2.56)
WIDE = DeformationRange(amplitude=(0.0, 4.5), sigma=(12.0, 28.0), translation=12.0, rotation=(-12.0, 12.0), scale=0.08)
SMALL = DeformationRange(amplitude=(0.0, 2.0), sigma=(14.0, 24.0), translation=2.0)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def random_flow(size: tuple[int, int], ranges: DeformationRange, generator: torch.Generator) -> Tensor:
    """Draw one smooth deformation.

    Args:
        size: height and width of the image, px; each is cut to a multiple of 4.
        ranges: ranges to draw from; lengths are scaled by the mean side over 256.
        generator: the only source of randomness.

    Returns:
        (1, 2, H / 4, W / 4), in pixels of that grid.
    """
    unit = (size[0] + size[1]) / 512
    height, width = size[0] // GRID_STRIDE, size[1] // GRID_STRIDE
    sigma = _uniform(*ranges.sigma, generator) * unit / GRID_STRIDE
    amplitude = _uniform(*ranges.amplitude, generator) * unit / GRID_STRIDE
    angle = math.radians(_uniform(*ranges.rotation, generator))
    zoom = 1 + _uniform(-ranges.scale, ranges.scale, generator)
    shift = torch.tensor([[_uniform(-1, 1, generator), _uniform(-1, 1, generator)]]) * ranges.translation * unit
    field = random_field(2, (height, width), sigma, generator)
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    matrix = torch.tensor([[[cos, -sin], [sin, cos]]])
    return amplitude * field + affine_flow(size, matrix, shift, GRID_STRIDE)


def random_field(channels: int, size: tuple[int, int], sigma: float, generator: torch.Generator) -> Tensor:
    """Draw blurred white noise (1, channels, *size) of unit variance; `sigma` is that of the blur, in grid points."""
    noise = torch.randn(1, channels, *size, generator=generator)
    return _smoother(size[0], sigma) @ noise @ _smoother(size[1], sigma).T


def _smoother(length: int, sigma: float) -> Tensor:
    """Make a Gaussian smoothing matrix (length, length) that keeps the variance of white noise, borders included."""
    position = torch.arange(length, dtype=torch.float32)
    weights = torch.exp(-((position[:, None] - position) ** 2) / (2 * sigma**2))
    return weights / weights.square().sum(dim=1, keepdim=True).sqrt()
