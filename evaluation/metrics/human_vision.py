"""Q_CV and Q_CB: fused images as models of the eye see them."""

from functools import lru_cache

import numpy as np
from scipy import fft, ndimage

from evaluation.metrics.common import check_sources, divide, stretch
from evaluation.metrics.edge_preservation import sobel_zero_padded

BLOCK = 16
"""Side of the regions of Q_CV, px."""


def qcv(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute Q_CV: visible error of the fused image against each source, weighted by the local saliency of the
    source.

    Chen and Varshney, "A human perception inspired quality metric for image fusion based on regional
    information", Information Fusion 8(2), 2007. At least 0, no upper bound, **lower is better**; symmetric in
    the sources.

    Convention of the reference toolbox: images stretched to 0..255; 16 x 16 blocks, those at the lower and
    right border filled up with zeros; saliency is the sum of gradient^5; contrast sensitivity after Mannos
    and Sakrison with 0.144 as frequency constant, on frequencies of N/8. Sources without any edge weigh all
    blocks alike.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    *sources, fused = (stretch(image) for image in check_sources(fixed, reference, fused))
    sensitivity = contrast_sensitivity(fused.shape)
    saliency = np.stack([_block_sums(np.hypot(*sobel_zero_padded(source)) ** 5) for source in sources])
    error = np.stack([_block_sums(_frequency_filter(source - fused, sensitivity) ** 2) for source in sources])
    if not saliency.any():
        saliency[:] = 1
    return float((saliency * error).sum() / saliency.sum()) / BLOCK**2


@lru_cache(maxsize=8)
def contrast_sensitivity(shape: tuple[int, int]) -> np.ndarray:
    """Compute the contrast sensitivity of the eye by Mannos and Sakrison, for Q_CV: (H, W / 2 + 1), as of rfft2."""
    scaled = 0.144 * _radial_frequency(shape, 8)
    return 2.6 * (0.0192 + scaled) * np.exp(-(scaled**1.1))


def _block_sums(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.arange(0, side, BLOCK) for side in image.shape)
    return np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)


def qcb(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute Q_CB: how well the contrast that the eye perceives in the sources is preserved.

    Chen and Blum, "A new automated quality assessment algorithm for image fusion", Image and Vision Computing
    27(10), 2009. In [0, 1], higher is better; symmetric in the sources.

    Convention of the reference toolbox: images stretched to 0..255; difference-of-Gaussians contrast
    sensitivity (15.387, 1.3456, 0.7622) on frequencies of N/30; Peli's contrast from Gaussians of sigma 2 and
    4 with zero padding; masking p 3, q 2, Z 1e-4. In black areas the toolbox's contrast is a ratio of two
    round-off errors; here it is 1, the size of such a ratio, which makes the value reproducible and agrees
    with the toolbox to 2e-3. A constant image has no contrast. Equal contrasts (also 0 and 0) count as fully
    preserved.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    images = [stretch(image) for image in check_sources(fixed, reference, fused)]
    radius = _radial_frequency(images[0].shape, 30)
    sensitivity = np.exp(-((radius / 15.387) ** 2)) - 0.7622 * np.exp(-((radius / 1.3456) ** 2))
    # The toolbox's windows are samples of the Gaussian density, which a window of 31 does not quite sum to 1.
    x = np.arange(-15, 16)
    centre, surround = (np.exp(-(x**2) / (2 * s**2)) / (np.sqrt(2 * np.pi) * s) for s in (2, 4))
    masked = []
    for image in images:
        seen = _frequency_filter(image, sensitivity)
        mean = _filter(seen, surround)
        round_off = np.abs(mean) < 1e-14
        contrast = np.abs(divide(_filter(seen, centre), np.where(round_off, 0, mean), 2) - 1)
        contrast *= image.any()
        masked.append(contrast**3 / (contrast**2 + 1e-4))
    first, second, fused_contrast = masked
    energy = first**2 + second**2
    weight = divide(first**2, energy, 0.5)
    kept = [
        divide(np.minimum(source, fused_contrast), np.maximum(source, fused_contrast), 1)
        for source in (first, second)
    ]
    return float((weight * kept[0] + (1 - weight) * kept[1]).mean())


def _filter(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Apply a separable filter, zero padded, same size."""
    rows = ndimage.correlate1d(image, kernel, axis=0, mode="constant")
    return ndimage.correlate1d(rows, kernel, axis=1, mode="constant")


def _frequency_filter(image: np.ndarray, response: np.ndarray) -> np.ndarray:
    return fft.irfft2(fft.rfft2(image) * response, s=image.shape)


def _radial_frequency(shape: tuple[int, int], divisor: float) -> np.ndarray:
    """Compute the distance from zero frequency, on axes -1..1 (MATLAB freqspace) times N / divisor, as rfft2."""
    height, width = shape
    rows = fft.fftfreq(height) * 2 * height / divisor
    columns = fft.rfftfreq(width) * 2 * width / divisor
    return np.hypot(rows[:, None], columns[None, :])
