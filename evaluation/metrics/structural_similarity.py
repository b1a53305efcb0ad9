"""SSIM, Piella's Q and Q_W, Yang's Q_Y: how much of the sources' structure the fused image keeps."""

from typing import NamedTuple

import numpy as np

from evaluation.metrics.common import LocalMoments, check_images, check_sources, divide, gaussian, local_moments

_CONSTANTS = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(a: np.ndarray, b: np.ndarray, seen: np.ndarray | None = None) -> float:
    """Compute the SSIM of two images.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4),
    2004: 11 x 11 Gaussian window of sigma 1.5, valid region, K 0.01 and 0.03, dynamic range 255. In [-1, 1],
    higher is better; symmetric.

    Args:
        a, b: (H, W) of at least 11 x 11, grey levels 0..255.
        seen: bool (H, W), windows to count by their centres; None counts all.

    Raises:
        ValueError: images that do not fit.
    """
    a, b = check_images(11, a=a, b=b)
    similarity = _similarity(local_moments(a, b, gaussian(11, 1.5)), *_CONSTANTS)
    return float((similarity if seen is None else similarity[seen[5:-5, 5:-5]]).mean())


def ssim_sum(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute SSIM(fixed, fused) + SSIM(reference, fused), as the paper's QSSIM; see :func:`ssim`.

    In [-2, 2], higher is better; symmetric in the sources. Half of it is the mean, ``qssim_mean``.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return ssim_sum_of(structure(*check_sources(fixed, reference, fused)))


def piella_q(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute Piella's Q (the paper's QS): SSIM with each source, weighted per pixel by the sources' local variances.

    Piella and Heijmans, "A new quality metric for image fusion", ICIP 2003, with the SSIM of Wang 2004 as in
    the reference toolbox. In [-1, 1], higher is better; symmetric in the sources. Variances below 1e-9 count
    as 0, and both sources weigh 1/2 where both are flat; without that, round-off decides on flat background.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return piella_q_of(structure(*check_sources(fixed, reference, fused)))


def piella_qw(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute Q_W: Piella's weighted quality, :func:`piella_q` averaged with the larger source variance as weight.

    Piella and Heijmans, ICIP 2003. In [-1, 1], higher is better; symmetric in the sources. As in the toolbox,
    a pixel where both sources are flat weighs 1/2, which is little beside a variance.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return piella_qw_of(structure(*check_sources(fixed, reference, fused)))


def qy(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute Q_Y: Yang's structural similarity; Piella's mixture where the sources agree, the better source
    elsewhere.

    Yang et al., "A novel similarity based quality metric for image fusion", Information Fusion 9(2), 2008. In
    [-1, 1], higher is better; symmetric in the sources. 7 x 7 Gaussian window of sigma 1.5, valid region,
    both constants 2e-16, sources agree from SSIM 0.75; variances below 1e-9 count as 0 (otherwise a black
    background gives NaN).

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = check_sources(fixed, reference, fused)
    pairs = ((fixed, fused), (reference, fused), (fixed, reference))
    moments = [local_moments(a, b, gaussian(7, 1.5)) for a, b in pairs]
    moments = [
        m._replace(**{k: _flat_is_flat(getattr(m, k)) for k in ("var_a", "var_b", "cov")}) for m in moments
    ]
    with_fixed, with_reference, of_sources = (_similarity(m, 2e-16, 2e-16) for m in moments)
    weight = _weight(moments[0].var_a, moments[1].var_a)
    mixture = weight * with_fixed + (1 - weight) * with_reference
    return float(np.where(of_sources >= 0.75, mixture, np.maximum(with_fixed, with_reference)).mean())


class Structure(NamedTuple):
    """SSIM of both sources with the fused image, and the sources' local variances, free of round-off."""

    fixed: np.ndarray
    reference: np.ndarray
    var_fixed: np.ndarray
    var_reference: np.ndarray


def structure(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> Structure:
    """Compute the terms of SSIM, Q and Q_W from images (H, W), grey levels 0..255."""
    moments = [local_moments(source, fused, gaussian(11, 1.5)) for source in (fixed, reference)]
    maps = [_similarity(m, *_CONSTANTS) for m in moments]
    return Structure(*maps, *(_flat_is_flat(m.var_a) for m in moments))


def ssim_sum_of(s: Structure) -> float:
    """Compute `ssim_sum` from the `structure` of both sources."""
    return float(s.fixed.mean() + s.reference.mean())


def _piella_map(s: Structure) -> np.ndarray:
    weight = _weight(s.var_fixed, s.var_reference)
    return weight * s.fixed + (1 - weight) * s.reference


def piella_q_of(s: Structure) -> float:
    """Compute `piella_q` from the `structure` of both sources."""
    return float(_piella_map(s).mean())


def piella_qw_of(s: Structure) -> float:
    """Compute `piella_qw` from the `structure` of both sources."""
    saliency = np.maximum(s.var_fixed, s.var_reference)
    saliency[saliency == 0] = 0.5
    return float(np.average(_piella_map(s), weights=saliency))


def _similarity(m: LocalMoments, c1: float, c2: float) -> np.ndarray:
    luminance = (2 * m.mean_a * m.mean_b + c1) / (m.mean_a**2 + m.mean_b**2 + c1)
    return luminance * (2 * m.cov + c2) / (m.var_a + m.var_b + c2)


def _weight(var_a: np.ndarray, var_b: np.ndarray) -> np.ndarray:
    """Compute Piella's saliency weight of the first source, 1/2 where both are flat."""
    return divide(var_a, var_a + var_b, 0.5)


def _flat_is_flat(variance: np.ndarray) -> np.ndarray:
    """Clear variance whose round-off (below 1e-9) counts as 0: otherwise it decides the weights on flat
    background."""
    return np.where(np.abs(variance) < 1e-9, 0, variance)
