"""What several metrics share: checks of images, windows and local moments."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from utils.imaging.images import MIN_SIDE


def check_images(minimum: int = 1, **images: np.ndarray) -> list[np.ndarray]:
    """Check that images are grey, equal in shape, finite and in 0..255.

    Args:
        minimum: smallest height and width, px.
        images: (H, W) by the name that an error gives them.

    Returns:
        The images, float64.

    Raises:
        ValueError: they are not.
    """
    checked: list[np.ndarray] = []
    first_name = next(iter(images))
    for name, image in images.items():
        image = np.asarray(image, dtype=np.float64)
        if image.ndim != 2:
            raise ValueError(f"{name}: expected a grey image of shape (H, W), found shape {image.shape}")
        if min(image.shape) < minimum:
            raise ValueError(f"{name}: expected at least {minimum} pixels a side, found shape {image.shape}")
        if checked and image.shape != checked[0].shape:
            raise ValueError(
                f"{name}: expected shape {checked[0].shape} like {first_name}, found {image.shape}"
            )
        low, high = image.min(), image.max()
        if not (low >= -0.5 and high <= 255.5):
            raise ValueError(f"{name}: expected grey levels in 0..255, found values from {low:g} to {high:g}")
        checked.append(image)
    return checked


def check_sources(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> list[np.ndarray]:
    """Check the three images (H, W) of a fusion metric, as `check_images` does.

    Raises:
        ValueError: as `check_images`, or a side is shorter than `MIN_SIDE`.
    """
    return check_images(MIN_SIDE, fixed=fixed, reference=reference, fused=fused)


@lru_cache
def gaussian(size: int, sigma: float) -> np.ndarray:
    """Make one axis, (size,), of a normalised ``size`` x ``size`` Gaussian window."""
    x = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def filter_valid(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Apply a separable filter where the window lies within the image: (H - n + 1, W - n + 1)."""
    edge = len(kernel) // 2
    rows = ndimage.correlate1d(image, kernel, axis=0)[edge:-edge]
    return ndimage.correlate1d(rows, kernel, axis=1)[:, edge:-edge]


def stretch(image: np.ndarray) -> np.ndarray:
    """Stretch an image (H, W) to the whole levels 0..255, halves rounded up. A constant image becomes 0."""
    low, high = image.min(), image.max()
    return np.floor((image - low) * 255 / (high - low) + 0.5) if high > low else np.zeros_like(image)


def divide(numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> np.ndarray:
    """Divide arrays whose shapes go together, and give ``otherwise`` where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), float(otherwise))
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


class LocalMoments(NamedTuple):
    """Local means, variances and covariance of two images under one window."""

    mean_a: np.ndarray
    mean_b: np.ndarray
    var_a: np.ndarray
    var_b: np.ndarray
    cov: np.ndarray


def local_moments(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> LocalMoments:
    """Compute local moments of two images (H, W) where a separable window, given by one axis, lies within them."""
    mean_a, mean_b = filter_valid(a, window), filter_valid(b, window)
    return LocalMoments(
        mean_a,
        mean_b,
        filter_valid(a * a, window) - mean_a**2,
        filter_valid(b * b, window) - mean_b**2,
        filter_valid(a * b, window) - mean_a * mean_b,
    )
