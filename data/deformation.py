"""Random smooth deformations with a known inverse, for training and validation.

The benchmark's recipe (`BENCHMARK`) is uniform noise in [-1, 1] per pixel, blurred by a Gaussian of sigma 16 px and
multiplied by 256 px, plus a small translation. Blurred white noise is a Gaussian random field. It is drawn directly on
a grid of a quarter of the resolution with the same covariance, at a sixteenth of the cost.
"""

from collections.abc import Sequence
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


NUMBERS = 6
"""Random numbers that `parameters` takes for one deformation."""


def parameters(numbers: Tensor, ranges: Sequence[DeformationRange], size: tuple[int, int]) -> Tensor:
    """Choose deformations within their ranges.

    Args:
        numbers: (B, `NUMBERS`), uniform in [0, 1).
        ranges: to choose from, for each deformation its own; lengths are scaled by the mean side over 256.
        size: height and width of the image, px.

    Returns:
        (B, 6), float64: sigma and amplitude in grid points, zoom times cosine and sine of the angle, shift along x and
        y in px.
    """
    unit = (size[0] + size[1]) / 512
    limits = [
        (x.sigma, x.amplitude, x.rotation, (-x.scale, x.scale), *[(-x.translation, x.translation)] * 2) for x in ranges
    ]
    low, high = torch.tensor(limits, dtype=torch.float64).unbind(dim=2)
    sigma, amplitude, angle, scale, x, y = torch.lerp(low, high, numbers.double()).unbind(dim=1)
    sigma, amplitude = sigma * unit / GRID_STRIDE, amplitude * unit / GRID_STRIDE
    zoom, angle = 1 + scale, angle.deg2rad()
    return torch.stack((sigma, amplitude, zoom * angle.cos(), zoom * angle.sin(), x * unit, y * unit), dim=1)


def smooth_flows(chosen: Tensor, noise: Tensor, size: tuple[int, int]) -> Tensor:
    """Make smooth deformations.

    Args:
        chosen: (B, 6) of `parameters`, float32.
        noise: (B, 2, H / 4, W / 4), white, of unit variance.
        size: height and width of the image, px.

    Returns:
        (B, 2, H / 4, W / 4), in pixels of that grid.
    """
    sigma, amplitude, cosine, sine = chosen[:, :4].unbind(dim=1)
    matrix = torch.stack((cosine, -sine, sine, cosine), dim=1).view(-1, 2, 2)
    affine = affine_flow(size, matrix, chosen[:, 4:], GRID_STRIDE)
    return affine + amplitude[:, None, None, None] * smoothed(noise, sigma)


def grid_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the grid of deformations of an image; each side of it is cut to a multiple of 4."""
    return size[0] // GRID_STRIDE, size[1] // GRID_STRIDE


def random_flow(size: tuple[int, int], ranges: DeformationRange, generator: torch.Generator) -> Tensor:
    """Draw one smooth deformation.

    Args:
        size: height and width of the image, px; each is cut to a multiple of 4.
        ranges: ranges to draw from; lengths are scaled by the mean side over 256.
        generator: the only source of randomness.

    Returns:
        (1, 2, H / 4, W / 4), in pixels of that grid.
    """
    chosen = parameters(torch.rand(1, NUMBERS, generator=generator), [ranges], size).float()
    return smooth_flows(chosen, torch.randn(1, 2, *grid_of(size), generator=generator), size)


def random_field(channels: int, size: tuple[int, int], sigma: float, generator: torch.Generator) -> Tensor:
    """Draw blurred white noise (1, channels, *size) of unit variance; `sigma` is that of the blur, in grid points."""
    return smoothed(torch.randn(1, channels, *size, generator=generator), torch.tensor([sigma]))


def smoothed(noise: Tensor, sigma: Tensor) -> Tensor:
    """Blur white noise (B, C, H, W) and keep its variance; `sigma` (B,) is that of each blur, in px."""
    rows, columns = (_smoothers(length, sigma) for length in noise.shape[2:])
    return rows @ noise @ columns.mT


def _smoothers(length: int, sigma: Tensor) -> Tensor:
    """Make Gaussian smoothing matrices (B, 1, length, length) that keep the variance of white noise, borders too."""
    position = torch.arange(length, dtype=torch.float32, device=sigma.device)
    weights = torch.exp(-((position[:, None] - position) ** 2) / (2 * sigma.view(-1, 1, 1, 1) ** 2))
    return weights / weights.square().sum(dim=-1, keepdim=True).sqrt()
