"""Contrast of the fused image alone: standard deviation, spatial frequency, average gradient."""

import numpy as np

from evaluation.metrics.common import check_images


def standard_deviation(image: np.ndarray) -> float:
    """Compute SD: standard deviation of the grey levels, divided by the number of pixels. In [0, 127.5]; higher
    counts as better.

    Args:
        image: (H, W), grey levels 0..255.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = check_images(image=image)
    return float(image.std())


def spatial_frequency(image: np.ndarray) -> float:
    """Compute SF: root of the summed mean squared differences along rows and columns. In [0, 361]; higher counts as
    better.

    Eskicioglu and Fisher, "Image quality measures and their performance", IEEE Trans. Communications 43(12),
    1995. Each mean is over the differences that exist, (H-1) W and H (W-1).

    Args:
        image: (H, W) of at least 2 x 2, grey levels 0..255.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = check_images(2, image=image)
    return float(np.sqrt(sum((np.diff(image, axis=axis) ** 2).mean() for axis in (0, 1))))


def average_gradient(image: np.ndarray) -> float:
    """Compute AG: sum of sqrt((dx^2 + dy^2) / 2) over all pixels, divided by (H-1)(W-1). At least 0; higher counts as
    better.

    Cui et al., "Detail preserved fusion of visible and infrared images using regional saliency extraction and
    multi-scale image decomposition", Optics Communications 341, 2015. dx and dy are MATLAB's ``gradient``:
    central differences inside, one-sided at the border.

    Args:
        image: (H, W) of at least 2 x 2, grey levels 0..255.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = check_images(2, image=image)
    dy, dx = np.gradient(image)
    height, width = image.shape
    return float(np.sqrt((dx**2 + dy**2) / 2).sum() / ((height - 1) * (width - 1)))
