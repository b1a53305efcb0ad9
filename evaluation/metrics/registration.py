"""How close an aligned image is to the truth: RMSE, and all such metrics at once."""

import numpy as np

from evaluation.metrics.common import check_images
from evaluation.metrics.correlation import ncc
from evaluation.metrics.mutual_information import mutual_information
from evaluation.metrics.structural_similarity import ssim


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the root mean squared difference in grey levels over the whole image. In [0, 255], **lower is better**;
    symmetric.

    Args:
        a, b: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    a, b = check_images(a=a, b=b)
    return float(np.sqrt(((a - b) ** 2).mean()))


def registration_metrics(
    aligned: np.ndarray, label: np.ndarray, seen: np.ndarray | None = None
) -> dict[str, float]:
    """Measure how close an aligned image is to the truth.

    Args:
        aligned: (H, W), grey levels 0..255.
        label: the truly aligned image, the same.
        seen: bool (H, W), pixels to count, of `utils.geometry.field_of_view`; None counts all.

    Returns:
        ``rmse`` (grey levels, lower is better), ``ssim``, ``ncc`` and ``mi_label``, the mutual information in
        bits; it is not called ``mi``, which is a fusion metric.

    Raises:
        ValueError: images that are not grey, differ in shape, are under 11 pixels a side or leave 0..255.
    """
    aligned, label = check_images(11, aligned=aligned, label=label)
    if seen is None:
        similarity = ssim(aligned, label)
    else:
        # Windows reach beyond: both images are black there.
        similarity = ssim(*(np.where(seen, image, 0) for image in (aligned, label)), seen)
        aligned, label = (image[seen][None] for image in (aligned, label))  # one row of pixels
    return {
        "rmse": rmse(aligned, label),
        "ssim": similarity,
        "ncc": ncc(aligned, label),
        "mi_label": mutual_information(aligned, label),
    }
