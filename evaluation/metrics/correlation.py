"""CC and SCD: correlation of the fused image with the sources; NCC, of two images."""

import numpy as np

from evaluation.metrics.common import check_images, check_sources


def cc(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute CC: mean of the correlations of the fused image with the two sources.

    In [-1, 1], higher is better; symmetric in the sources. A constant image correlates 0 with everything.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = check_sources(fixed, reference, fused)
    return (_pearson(fixed, fused) + _pearson(reference, fused)) / 2


def scd(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute SCD: sum of the correlations of differences, corr(F - B, A) + corr(F - A, B).

    Aslantas and Bendes, "A new image quality metric for image fusion: the sum of the correlations of
    differences", AEU 69(12), 2015. In [-2, 2], higher is better; symmetric in the sources. A constant image
    or difference correlates 0 with everything, so that F = A = B scores 0: the fused image then carries over
    nothing that the other source lacks.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = check_sources(fixed, reference, fused)
    return _pearson(fused - reference, fixed) + _pearson(fused - fixed, reference)


def ncc(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the normalised cross-correlation (Pearson) over the whole image. In [-1, 1], higher is better; symmetric.

    0 where one image is constant, 1 where both are the same.

    Args:
        a, b: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    a, b = check_images(a=a, b=b)
    return 1.0 if np.array_equal(a, b) else _pearson(a, b)


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Pearson correlation; 0 where one image is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0
