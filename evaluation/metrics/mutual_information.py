"""Entropy and mutual information of grey levels."""

import numpy as np

from evaluation.metrics.common import check_images, check_sources, stretch


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the mutual information of two images in bits, from the joint histogram of 256 x 256 grey levels.

    In [0, 8], higher is better; symmetric. 0 where one image is constant. Note that on misaligned images of
    different modalities its maximum is not the true alignment.

    Args:
        a, b: (H, W), grey levels 0..255; fractions are rounded.

    Raises:
        ValueError: images that do not fit.
    """
    return _mutual_information(*(_levels(image) for image in check_images(a=a, b=b)))


def mi_bits(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute MI: I(fixed; fused) + I(reference; fused) in bits, grey levels as they are.

    Qu et al., "Information measure for performance of image fusion", Electronics Letters 38(7), 2002. In [0,
    16], higher is better; symmetric in the sources.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255; fractions are rounded.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = (_levels(image) for image in check_sources(fixed, reference, fused))
    return _mutual_information(fixed, fused) + _mutual_information(reference, fused)


def mi_nats(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute MI in nats of images that were stretched to 0..255 first, the other convention in use; see
    :func:`mi_bits`.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return float(np.log(2)) * mi_bits(*(stretch(image) for image in check_sources(fixed, reference, fused)))


def normalised_mutual_information(a: np.ndarray, b: np.ndarray, mask: np.ndarray, bins: int = 24) -> float:
    """Compute (H(a) + H(b)) / H(a, b): how well each image predicts the other one, whatever their contrast.

    Studholme et al., "An overlap invariant entropy measure of 3D medical image alignment", Pattern Recognition 32(1),
    1999. In [1, 2], higher is better; symmetric. 1 where an image is constant.

    Args:
        a, b: (H, W), any finite values.
        mask: (H, W), true where pixels count.
        bins: of each image's range.

    Raises:
        ValueError: a mask without a pixel.
    """
    if not mask.any():
        raise ValueError("mask: expected at least one pixel, found none")
    joint = np.histogram2d(a[mask], b[mask], bins)[0]
    both = _entropy(joint)
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / both if both > 0 else 1.0


def entropy(image: np.ndarray) -> float:
    """Compute EN: Shannon entropy of the 256 grey levels in bits. In [0, 8]; higher counts as better.

    Roberts et al., "Assessment of image fusion procedures using entropy, image quality, and multispectral
    classification", J. Applied Remote Sensing 2, 2008.

    Args:
        image: (H, W), grey levels 0..255; fractions are rounded.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = check_images(image=image)
    return _entropy(np.bincount(_levels(image).ravel()))


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Compute I(a; b) in bits from the joint 256 x 256 histogram of integer levels."""
    joint = np.bincount((a * 256 + b).ravel(), minlength=65536).reshape(256, 256)
    return max(_entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint), 0.0)


def _entropy(counts: np.ndarray) -> float:
    """Compute the Shannon entropy of a histogram in bits."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def _levels(image: np.ndarray) -> np.ndarray:
    """Round grey levels to the 256 bins of a histogram."""
    return np.clip(np.rint(image), 0, 255).astype(np.intp)
