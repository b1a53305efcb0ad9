"""SSIM, Piella's Q and Q_W, Yang's Q_Y: how much of the sources' structure the fused image keeps."""

from typing import NamedTuple

import numpy as np

from evaluation.metrics.common import LocalMoments, check_images, check_sources, divide, gaussian, local_moments

# kornia.metrics.ssim gives the same to 1e-15 in float64. It is not used here: the other metrics need the local
# variances as well, and processes that score do not import torch.
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


class Structure(NamedTuple):
    """SSIM of a fused image with both of its sources, and what follows from it.

    Attributes:
        fixed, reference: SSIM of each source with the fused image at each pixel, in [-1, 1].
        var_fixed, var_reference: local variances of the sources; those below 1e-9 are 0, as round-off would decide on
            flat background.
    """

    fixed: np.ndarray
    reference: np.ndarray
    var_fixed: np.ndarray
    var_reference: np.ndarray

    @property
    def ssim_sum(self) -> float:
        """SSIM(fixed, fused) + SSIM(reference, fused), as the paper's QSSIM; see :func:`ssim`.

        In [-2, 2], higher is better; symmetric in the sources. Half of it is the mean, ``qssim_mean``.
        """
        return float(self.fixed.mean() + self.reference.mean())

    @property
    def piella_q(self) -> float:
        """Piella's Q (the paper's QS): SSIM with each source, weighted per pixel by the sources' local variances.

        Piella and Heijmans, "A new quality metric for image fusion", ICIP 2003, with the SSIM of Wang 2004 as in
        the reference toolbox. In [-1, 1], higher is better; symmetric in the sources. Both sources weigh 1/2 where
        both are flat.
        """
        return float(self._piella_map().mean())

    @property
    def piella_qw(self) -> float:
        """Q_W: Piella's weighted quality, `piella_q` averaged with the larger source variance as weight.

        Piella and Heijmans, ICIP 2003. In [-1, 1], higher is better; symmetric in the sources. As in the toolbox,
        a pixel where both sources are flat weighs 1/2, which is little beside a variance.
        """
        saliency = np.maximum(self.var_fixed, self.var_reference)
        saliency[saliency == 0] = 0.5
        return float(np.average(self._piella_map(), weights=saliency))

    def _piella_map(self) -> np.ndarray:
        weight = _weight(self.var_fixed, self.var_reference)
        return weight * self.fixed + (1 - weight) * self.reference


def structure(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> Structure:
    """Compute the terms of SSIM, Q and Q_W.

    Args:
        fixed, reference, fused: (H, W) of at least 11 x 11, grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = check_sources(fixed, reference, fused)
    moments = [local_moments(source, fused, gaussian(11, 1.5)) for source in (fixed, reference)]
    maps = [_similarity(m, *_CONSTANTS) for m in moments]
    return Structure(*maps, *(_flat_is_flat(m.var_a) for m in moments))


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
