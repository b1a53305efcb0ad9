"""VIF and VIFF: how much the eye draws from the fused image about the sources."""

from typing import NamedTuple

import numpy as np

from evaluation.metrics.common import check_sources, filter_valid, gaussian, local_moments

SCALES = ((17, 1.0), (9, 0.0), (5, 0.15), (3, 1.0))
"""Side of the window, px, and weight in VIFF of each scale, fine to coarse; each is on half the resolution of the one
before."""

EYE_NOISE = 0.005
"""Variance of the noise that the eye adds in VIFF, of images in [0, 1] (Han et al. 2013)."""


def viff(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute VIFF (the paper's QVIF): visual information fidelity for fusion.

    Han et al., "A new image fusion performance metric based on visual information fidelity", Information
    Fusion 14(2), 2013. At least 0, 1 for F = A = B, above 1 where contrast is enhanced; higher is better. Eye
    noise 0.005 * 255^2; weights 1, 0, 0.15, 1 over 2.15 from fine to coarse; per pixel the source with the
    smaller gain counts, and the reference where the gains tie. The tie rule is the toolbox's, and it makes
    VIFF not exactly symmetric.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = check_sources(fixed, reference, fused)
    return viff_of(gains(fixed, fused), gains(reference, fused))


def vif_sum(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Compute VIF(fixed, fused) + VIF(reference, fused), pixel domain.

    Sheikh and Bovik, "Image information and visual quality", IEEE TIP 15(2), 2006. At least 0, 2 for F = A =
    B, above where contrast is enhanced; higher is better; symmetric in the sources. Eye noise 2, four scales.
    A flat source has no information to lose: its VIF is 1.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = check_sources(fixed, reference, fused)
    return vif_of(gains(fixed, fused)) + vif_of(gains(reference, fused))


class Gain(NamedTuple):
    """One scale of the model fused = gain * source + noise: gain, noise variance, source variance; (h, w)
    each."""

    gain: np.ndarray
    noise: np.ndarray
    variance: np.ndarray


def gains(source: np.ndarray, fused: np.ndarray) -> list[Gain]:
    """Model a fused image by a source at each of `SCALES`; both (H, W), grey levels 0..255."""
    scales = []
    for size, _ in SCALES:
        window = gaussian(size, size / 5)
        if scales:
            source, fused = (filter_valid(image, window)[::2, ::2] for image in (source, fused))
        m = local_moments(source, fused, window)
        variance, fused_variance = np.maximum(m.var_a, 0), np.maximum(m.var_b, 0)
        gain = m.cov / (variance + 1e-10)
        noise = fused_variance - gain * m.cov
        source_flat, fused_flat = variance < 1e-10, fused_variance < 1e-10
        gain[source_flat | fused_flat] = 0
        noise[source_flat] = fused_variance[source_flat]
        noise[fused_flat] = 0
        variance[source_flat] = 0
        inverted = gain < 0
        noise[inverted] = fused_variance[inverted]
        gain[inverted] = 0
        scales.append(Gain(gain, np.maximum(noise, 1e-10), variance))
    return scales


def _information(scale: Gain, eye_noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the information, per pixel, that the eye draws from the fused image about the source, and from the
    source."""
    kept = np.log10(1 + scale.gain**2 * scale.variance / (scale.noise + eye_noise))
    return kept, np.log10(1 + scale.variance / eye_noise)


def viff_of(fixed: list[Gain], reference: list[Gain]) -> float:
    """Compute `viff` from the `gains` of both sources."""
    # Added to every pixel as in the toolbox; a scale without information is preserved to 1.
    tiny = 1e-7
    result = 0.0
    for (_, weight), of_fixed, of_reference in zip(SCALES, fixed, reference, strict=True):
        smaller = of_fixed.gain < of_reference.gain
        information = [_information(scale, EYE_NOISE * 255**2) for scale in (of_fixed, of_reference)]
        kept, total = (np.where(smaller, *maps) + tiny for maps in zip(*information, strict=True))
        result += weight * kept.sum() / total.sum()
    return float(result / sum(weight for _, weight in SCALES))


def vif_of(scales: list[Gain]) -> float:
    """Compute the VIF of one source from its `gains`."""
    sums = [[information.sum() for information in _information(scale, 2)] for scale in scales]
    kept, total = np.sum(sums, axis=0)
    return float(kept / total) if total > 0 else 1.0
