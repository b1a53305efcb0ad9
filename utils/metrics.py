"""Metrics of image fusion and registration that agree with the field's reference toolboxes.

Every image is a grey image, float, shape (H, W), in grey levels 0..255. A fusion metric takes
``(fixed, reference, fused)``: the fixed image, the other source in alignment with it (the truth where there
is one), and the fused image. Constant images give a defined value: the best one where nothing differs.

``fusion_metrics`` and ``registration_metrics`` give all of them at once; ``python -m utils.metrics --help``
scores folders of images (`utils.scoring`).
"""

import sys
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

from utils.image_io import MIN_SIDE

LOWER_IS_BETTER = frozenset({"qcv", "rmse"})
"""Metrics that improve as they fall; every other metric here improves as it rises."""


# --- parts that several metrics share -----------------------------------------------------------------------


def _grey(minimum: int = 1, **images: np.ndarray) -> list[np.ndarray]:
    """The images as float64, after a check that they are grey, equal in shape, finite and in 0..255."""
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


def _sources(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> list[np.ndarray]:
    return _grey(MIN_SIDE, fixed=fixed, reference=reference, fused=fused)


@lru_cache
def _gaussian(size: int, sigma: float) -> np.ndarray:
    """One axis of a normalised ``size`` x ``size`` Gaussian window."""
    x = np.arange(size) - (size - 1) / 2
    kernel = np.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _filter(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable filter with zero padding, same size."""
    rows = ndimage.correlate1d(image, kernel, axis=0, mode="constant")
    return ndimage.correlate1d(rows, kernel, axis=1, mode="constant")


def _filter_valid(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Separable filter, only where the window lies within the image: (H - n + 1, W - n + 1)."""
    edge = len(kernel) // 2
    rows = ndimage.correlate1d(image, kernel, axis=0)[edge:-edge]
    return ndimage.correlate1d(rows, kernel, axis=1)[:, edge:-edge]


def _sobel(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Horizontal and vertical Sobel derivative, zero padding."""
    return ndimage.sobel(image, axis=1, mode="constant"), ndimage.sobel(image, axis=0, mode="constant")


def _stretch(image: np.ndarray) -> np.ndarray:
    """Min-max stretch to the whole levels 0..255, halves rounded up; a constant image becomes 0."""
    low, high = image.min(), image.max()
    return np.floor((image - low) * 255 / (high - low) + 0.5) if high > low else np.zeros_like(image)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, otherwise: float) -> np.ndarray:
    """``numerator / denominator``, and ``otherwise`` where the denominator is 0."""
    result = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), float(otherwise))
    return np.divide(numerator, denominator, out=result, where=denominator != 0)


def _frequency_filter(image: np.ndarray, response: np.ndarray) -> np.ndarray:
    return fft.irfft2(fft.rfft2(image) * response, s=image.shape)


def _radial_frequency(shape: tuple[int, int], divisor: float) -> np.ndarray:
    """Distance from zero frequency on MATLAB's freqspace axes (-1..1) times N / divisor, in rfft2 layout."""
    height, width = shape
    rows = fft.fftfreq(height) * 2 * height / divisor
    columns = fft.rfftfreq(width) * 2 * width / divisor
    return np.hypot(rows[:, None], columns[None, :])


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation; 0 where one image is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale > 0 else 0.0


def _levels(image: np.ndarray) -> np.ndarray:
    """Grey levels rounded to the 256 bins of a histogram."""
    return np.clip(np.rint(image), 0, 255).astype(np.intp)


def _entropy(counts: np.ndarray) -> float:
    """Shannon entropy in bits of a histogram."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def _mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) in bits from the joint 256 x 256 histogram of integer levels."""
    joint = np.bincount((a * 256 + b).ravel(), minlength=65536).reshape(256, 256)
    return max(_entropy(joint.sum(0)) + _entropy(joint.sum(1)) - _entropy(joint), 0.0)


# --- transfer of edges --------------------------------------------------------------------------------------


def _sigmoid(x: np.ndarray | float, top: float, slope: float, middle: float) -> np.ndarray:
    return top / (1 + np.exp(slope * (x - middle)))


def qabf(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray, *, variant: str = "xydeas") -> float:
    """Q^AB/F: share of the sources' edge information, strength and direction, that the fused image keeps.

    Xydeas and Petrovic, "Objective image fusion performance measure", Electronics Letters 36(4), 2000. Higher
    is better; symmetric in the sources.

    - ``"xydeas"``, the paper's form and the one to report: mean weighted by the sources' gradients, in [0,
      0.976] for integer grey levels. As in the reference toolbox, the strength term of a tie between two
      gradients is the fused gradient itself. Sources and fused image without any edge score 0.975, as
      identical images do; edges invented over flat sources score 0.
    - ``"zliu"``, from the toolbox of Liu et al. (IEEE TPAMI 34(1), 2012): constants -10, 0.5, -20, 0.75,
      wrapped angle and a plain mean over pixels, so that flat background scores near 1. In [0, 0.987]. For
      comparison only.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.
        variant: ``"xydeas"`` or ``"zliu"``.

    Raises:
        ValueError: images that do not fit, or an unknown variant.
    """
    if variant not in _QABF_VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(_QABF_VARIANTS)}, found {variant!r}")
    return _QABF_VARIANTS[variant](*(_sobel(image) for image in _sources(fixed, reference, fused)))


def _qabf_xydeas(*gradients: tuple[np.ndarray, np.ndarray]) -> float:
    def keeps(strength: np.ndarray | float, orientation: np.ndarray | float) -> np.ndarray:
        return _sigmoid(strength, 0.9994, -15, 0.5) * _sigmoid(orientation, 0.9879, -22, 0.8)

    # The sign before dy matters: a vertical edge (dx = 0) has the angle +pi/2 and angles are not wrapped.
    *sources, fused = ((np.hypot(dx, dy), np.arctan(_ratio(-dy, dx, np.inf))) for dx, dy in gradients)
    fused_strength, fused_angle = fused
    kept = total = 0.0
    for strength, angle in sources:
        ratio = _ratio(np.minimum(strength, fused_strength), np.maximum(strength, fused_strength), 0)
        ratio = np.where(strength == fused_strength, fused_strength, ratio)
        kept += (keeps(ratio, 1 - np.abs(angle - fused_angle) / (np.pi / 2)) * strength).sum()
        total += strength.sum()
    if total == 0:
        return 0.0 if fused_strength.any() else float(keeps(1, 1))
    return float(kept / total)


def _qabf_zliu(*gradients: tuple[np.ndarray, np.ndarray]) -> float:
    tiny = 1e-5
    strengths = [np.hypot(dx, dy) for dx, dy in gradients]
    *sources, fused = (np.where(strength == 0, tiny, strength) for strength in strengths)
    *angles, fused_angle = (np.arctan(dy / np.where(dx == 0, tiny, dx)) for dx, dy in gradients)
    kept = total = 0.0
    for strength, angle in zip(sources, angles, strict=True):
        ratio = np.minimum(strength, fused) / np.maximum(strength, fused)
        orientation = np.abs(np.abs(angle - fused_angle) - np.pi / 2) * 2 / np.pi
        kept = kept + _sigmoid(ratio, 1, -10, 0.5) * _sigmoid(orientation, 1, -20, 0.75) * strength
        total = total + strength
    return float((kept / total).mean())


_QABF_VARIANTS = {"xydeas": _qabf_xydeas, "zliu": _qabf_zliu}


# --- models of human vision ---------------------------------------------------------------------------------


def qcv(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Q_CV: visible error of the fused image against each source, weighted by the local saliency of the
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
    *sources, fused = (_stretch(image) for image in _sources(fixed, reference, fused))
    scaled = 0.144 * _radial_frequency(fused.shape, 8)
    sensitivity = 2.6 * (0.0192 + scaled) * np.exp(-(scaled**1.1))
    saliency = np.stack([_block_sums(np.hypot(*_sobel(source)) ** 5) for source in sources])
    error = np.stack([_block_sums(_frequency_filter(source - fused, sensitivity) ** 2) for source in sources])
    if not saliency.any():
        saliency[:] = 1
    return float((saliency * error).sum() / saliency.sum()) / _BLOCK**2


_BLOCK = 16


def _block_sums(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.arange(0, side, _BLOCK) for side in image.shape)
    return np.add.reduceat(np.add.reduceat(image, rows, axis=0), columns, axis=1)


def qcb(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Q_CB: how well the contrast that the eye perceives in the sources is preserved.

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
    images = [_stretch(image) for image in _sources(fixed, reference, fused)]
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
        contrast = np.abs(_ratio(_filter(seen, centre), np.where(round_off, 0, mean), 2) - 1)
        contrast *= image.any()
        masked.append(contrast**3 / (contrast**2 + 1e-4))
    first, second, fused_contrast = masked
    energy = first**2 + second**2
    weight = _ratio(first**2, energy, 0.5)
    kept = [
        _ratio(np.minimum(source, fused_contrast), np.maximum(source, fused_contrast), 1)
        for source in (first, second)
    ]
    return float((weight * kept[0] + (1 - weight) * kept[1]).mean())


# --- structural similarity ----------------------------------------------------------------------------------


class _Moments(NamedTuple):
    """Local means, variances and covariance of two images under one window."""

    mean_a: np.ndarray
    mean_b: np.ndarray
    var_a: np.ndarray
    var_b: np.ndarray
    cov: np.ndarray


def _moments(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> _Moments:
    mean_a, mean_b = _filter_valid(a, window), _filter_valid(b, window)
    return _Moments(
        mean_a,
        mean_b,
        _filter_valid(a * a, window) - mean_a**2,
        _filter_valid(b * b, window) - mean_b**2,
        _filter_valid(a * b, window) - mean_a * mean_b,
    )


def _flat_is_flat(variance: np.ndarray) -> np.ndarray:
    """Variance whose round-off (below 1e-9) counts as 0: otherwise it decides the weights on flat
    background."""
    return np.where(np.abs(variance) < 1e-9, 0, variance)


def _weight(var_a: np.ndarray, var_b: np.ndarray) -> np.ndarray:
    """Piella's saliency weight of the first source, 1/2 where both are flat."""
    return _ratio(var_a, var_a + var_b, 0.5)


def _similarity(m: _Moments, c1: float, c2: float) -> np.ndarray:
    luminance = (2 * m.mean_a * m.mean_b + c1) / (m.mean_a**2 + m.mean_b**2 + c1)
    return luminance * (2 * m.cov + c2) / (m.var_a + m.var_b + c2)


class _Structure(NamedTuple):
    """SSIM of both sources with the fused image, and the sources' local variances, free of round-off."""

    fixed: np.ndarray
    reference: np.ndarray
    var_fixed: np.ndarray
    var_reference: np.ndarray


def _structure(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> _Structure:
    moments = [_moments(source, fused, _gaussian(11, 1.5)) for source in (fixed, reference)]
    maps = [_similarity(m, (0.01 * 255) ** 2, (0.03 * 255) ** 2) for m in moments]
    return _Structure(*maps, *(_flat_is_flat(m.var_a) for m in moments))


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two images.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP 13(4),
    2004: 11 x 11 Gaussian window of sigma 1.5, valid region, K 0.01 and 0.03, dynamic range 255. In [-1, 1],
    higher is better; symmetric.

    Args:
        a, b: (H, W) of at least 11 x 11, grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    a, b = _grey(11, a=a, b=b)
    return float(_similarity(_moments(a, b, _gaussian(11, 1.5)), (0.01 * 255) ** 2, (0.03 * 255) ** 2).mean())


def ssim_sum(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """SSIM(fixed, fused) + SSIM(reference, fused), as the paper's QSSIM; see :func:`ssim`.

    In [-2, 2], higher is better; symmetric in the sources. Half of it is the mean, ``qssim_mean``.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return _ssim_sum(_structure(*_sources(fixed, reference, fused)))


def _ssim_sum(s: _Structure) -> float:
    return float(s.fixed.mean() + s.reference.mean())


def piella_q(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Piella's Q (the paper's QS): SSIM with each source, weighted per pixel by the sources' local variances.

    Piella and Heijmans, "A new quality metric for image fusion", ICIP 2003, with the SSIM of Wang 2004 as in
    the reference toolbox. In [-1, 1], higher is better; symmetric in the sources. Variances below 1e-9 count
    as 0, and both sources weigh 1/2 where both are flat; without that, round-off decides on flat background.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return _piella_q(_structure(*_sources(fixed, reference, fused)))


def _piella_map(s: _Structure) -> np.ndarray:
    weight = _weight(s.var_fixed, s.var_reference)
    return weight * s.fixed + (1 - weight) * s.reference


def _piella_q(s: _Structure) -> float:
    return float(_piella_map(s).mean())


def piella_qw(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Q_W: Piella's weighted quality, :func:`piella_q` averaged with the larger source variance as weight.

    Piella and Heijmans, ICIP 2003. In [-1, 1], higher is better; symmetric in the sources. As in the toolbox,
    a pixel where both sources are flat weighs 1/2, which is little beside a variance.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return _piella_qw(_structure(*_sources(fixed, reference, fused)))


def _piella_qw(s: _Structure) -> float:
    saliency = np.maximum(s.var_fixed, s.var_reference)
    saliency[saliency == 0] = 0.5
    return float(np.average(_piella_map(s), weights=saliency))


def qy(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """Q_Y: Yang's structural similarity; Piella's mixture where the sources agree, the better source
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
    fixed, reference, fused = _sources(fixed, reference, fused)
    pairs = ((fixed, fused), (reference, fused), (fixed, reference))
    moments = [_moments(a, b, _gaussian(7, 1.5)) for a, b in pairs]
    moments = [
        m._replace(**{k: _flat_is_flat(getattr(m, k)) for k in ("var_a", "var_b", "cov")}) for m in moments
    ]
    with_fixed, with_reference, of_sources = (_similarity(m, 2e-16, 2e-16) for m in moments)
    weight = _weight(moments[0].var_a, moments[1].var_a)
    mixture = weight * with_fixed + (1 - weight) * with_reference
    return float(np.where(of_sources >= 0.75, mixture, np.maximum(with_fixed, with_reference)).mean())


# --- visual information fidelity ----------------------------------------------------------------------------


class _Gain(NamedTuple):
    """One scale of the model fused = gain * source + noise: gain, noise variance, source variance; (h, w)
    each."""

    gain: np.ndarray
    noise: np.ndarray
    variance: np.ndarray


def _gains(source: np.ndarray, fused: np.ndarray) -> list[_Gain]:
    """Fine to coarse: windows of 17, 9, 5 and 3 pixels, each after the first on half the resolution."""
    scales = []
    for size in (17, 9, 5, 3):
        window = _gaussian(size, size / 5)
        if scales:
            source, fused = (_filter_valid(image, window)[::2, ::2] for image in (source, fused))
        m = _moments(source, fused, window)
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
        scales.append(_Gain(gain, np.maximum(noise, 1e-10), variance))
    return scales


def _information(scale: _Gain, eye_noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Information, per pixel, that the eye draws from the fused image about the source, and from the
    source."""
    kept = np.log10(1 + scale.gain**2 * scale.variance / (scale.noise + eye_noise))
    return kept, np.log10(1 + scale.variance / eye_noise)


def viff(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """VIFF (the paper's QVIF): visual information fidelity for fusion.

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
    fixed, reference, fused = _sources(fixed, reference, fused)
    return _viff(_gains(fixed, fused), _gains(reference, fused))


def _viff(fixed: list[_Gain], reference: list[_Gain]) -> float:
    # Added to every pixel as in the toolbox; a scale without information is preserved to 1.
    tiny = 1e-7
    result = 0.0
    for weight, of_fixed, of_reference in zip((1, 0, 0.15, 1), fixed, reference, strict=True):
        smaller = of_fixed.gain < of_reference.gain
        information = [_information(scale, 0.005 * 255**2) for scale in (of_fixed, of_reference)]
        kept, total = (np.where(smaller, *maps) + tiny for maps in zip(*information, strict=True))
        result += weight / 2.15 * kept.sum() / total.sum()
    return float(result)


def vif_sum(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """VIF(fixed, fused) + VIF(reference, fused), pixel domain.

    Sheikh and Bovik, "Image information and visual quality", IEEE TIP 15(2), 2006. At least 0, 2 for F = A =
    B, above where contrast is enhanced; higher is better; symmetric in the sources. Eye noise 2, four scales.
    A flat source has no information to lose: its VIF is 1.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = _sources(fixed, reference, fused)
    return _vif(_gains(fixed, fused)) + _vif(_gains(reference, fused))


def _vif(scales: list[_Gain]) -> float:
    sums = [[information.sum() for information in _information(scale, 2)] for scale in scales]
    kept, total = np.sum(sums, axis=0)
    return float(kept / total) if total > 0 else 1.0


# --- information, contrast and correlation ------------------------------------------------------------------


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two images in bits, from the joint histogram of 256 x 256 grey levels.

    In [0, 8], higher is better; symmetric. 0 where one image is constant. Note that on misaligned images of
    different modalities its maximum is not the true alignment.

    Args:
        a, b: (H, W), grey levels 0..255; fractions are rounded.

    Raises:
        ValueError: images that do not fit.
    """
    return _mutual_information(*(_levels(image) for image in _grey(a=a, b=b)))


def mi_bits(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """MI: I(fixed; fused) + I(reference; fused) in bits, grey levels as they are.

    Qu et al., "Information measure for performance of image fusion", Electronics Letters 38(7), 2002. In [0,
    16], higher is better; symmetric in the sources.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255; fractions are rounded.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = (_levels(image) for image in _sources(fixed, reference, fused))
    return _mutual_information(fixed, fused) + _mutual_information(reference, fused)


def mi_nats(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """MI in nats of images that were stretched to 0..255 first, the other convention in use; see
    :func:`mi_bits`.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    return float(np.log(2)) * mi_bits(*(_stretch(image) for image in _sources(fixed, reference, fused)))


def entropy(image: np.ndarray) -> float:
    """EN: Shannon entropy of the 256 grey levels in bits. In [0, 8]; higher counts as better.

    Roberts et al., "Assessment of image fusion procedures using entropy, image quality, and multispectral
    classification", J. Applied Remote Sensing 2, 2008.

    Args:
        image: (H, W), grey levels 0..255; fractions are rounded.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = _grey(image=image)
    return _entropy(np.bincount(_levels(image).ravel()))


def standard_deviation(image: np.ndarray) -> float:
    """SD: standard deviation of the grey levels, divided by the number of pixels. In [0, 127.5]; higher
    counts as better.

    Args:
        image: (H, W), grey levels 0..255.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = _grey(image=image)
    return float(image.std())


def spatial_frequency(image: np.ndarray) -> float:
    """SF: root of the summed mean squared differences along rows and columns. In [0, 361]; higher counts as
    better.

    Eskicioglu and Fisher, "Image quality measures and their performance", IEEE Trans. Communications 43(12),
    1995. Each mean is over the differences that exist, (H-1) W and H (W-1).

    Args:
        image: (H, W) of at least 2 x 2, grey levels 0..255.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = _grey(2, image=image)
    return float(np.sqrt(sum((np.diff(image, axis=axis) ** 2).mean() for axis in (0, 1))))


def average_gradient(image: np.ndarray) -> float:
    """AG: sum of sqrt((dx^2 + dy^2) / 2) over all pixels, divided by (H-1)(W-1). At least 0; higher counts as
    better.

    Cui et al., "Detail preserved fusion of visible and infrared images using regional saliency extraction and
    multi-scale image decomposition", Optics Communications 341, 2015. dx and dy are MATLAB's ``gradient``:
    central differences inside, one-sided at the border.

    Args:
        image: (H, W) of at least 2 x 2, grey levels 0..255.

    Raises:
        ValueError: not a grey image.
    """
    (image,) = _grey(2, image=image)
    dy, dx = np.gradient(image)
    height, width = image.shape
    return float(np.sqrt((dx**2 + dy**2) / 2).sum() / ((height - 1) * (width - 1)))


def cc(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """CC: mean of the correlations of the fused image with the two sources.

    In [-1, 1], higher is better; symmetric in the sources. A constant image correlates 0 with everything.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = _sources(fixed, reference, fused)
    return (_correlation(fixed, fused) + _correlation(reference, fused)) / 2


def scd(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> float:
    """SCD: sum of the correlations of differences, corr(F - B, A) + corr(F - A, B).

    Aslantas and Bendes, "A new image quality metric for image fusion: the sum of the correlations of
    differences", AEU 69(12), 2015. In [-2, 2], higher is better; symmetric in the sources. A constant image
    or difference correlates 0 with everything, so that F = A = B scores 0: the fused image then carries over
    nothing that the other source lacks.

    Args:
        fixed, reference, fused: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    fixed, reference, fused = _sources(fixed, reference, fused)
    return _correlation(fused - reference, fixed) + _correlation(fused - fixed, reference)


def fusion_metrics(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray) -> dict[str, float]:
    """All fusion metrics of one fused image.

    Args:
        fixed, reference, fused: (H, W), at least 64 pixels a side, grey levels 0..255.

    Returns:
        First the columns of the papers: ``qabf`` (Xydeas and Petrovic), ``qcv`` (lower is better), ``qvif``
        (VIFF), ``qs`` (Piella's Q), ``qssim`` (the sum), ``qcb``, ``qy``, ``mi`` (bits), ``en``, ``sd``,
        ``sf``, ``ag``. Then the other conventions and metrics: ``qssim_mean``, ``qw``, ``vif`` (the sum),
        ``cc``, ``scd``, ``qabf_zliu``, ``mi_nats``.

    Raises:
        ValueError: images that are not grey, differ in shape, are too small or leave 0..255.
    """
    a, b, f = _sources(fixed, reference, fused)
    # What several metrics need is computed once.
    gradients = [_sobel(image) for image in (a, b, f)]
    structure = _structure(a, b, f)
    gains = _gains(a, f), _gains(b, f)
    return {
        "qabf": _qabf_xydeas(*gradients),
        "qcv": qcv(a, b, f),
        "qvif": _viff(*gains),
        "qs": _piella_q(structure),
        "qssim": _ssim_sum(structure),
        "qcb": qcb(a, b, f),
        "qy": qy(a, b, f),
        "mi": mi_bits(a, b, f),
        "en": entropy(f),
        "sd": standard_deviation(f),
        "sf": spatial_frequency(f),
        "ag": average_gradient(f),
        "qssim_mean": _ssim_sum(structure) / 2,
        "qw": _piella_qw(structure),
        "vif": sum(_vif(scales) for scales in gains),
        "cc": cc(a, b, f),
        "scd": scd(a, b, f),
        "qabf_zliu": _qabf_zliu(*gradients),
        "mi_nats": mi_nats(a, b, f),
    }


# --- registration -------------------------------------------------------------------------------------------


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean squared difference in grey levels over the whole image. In [0, 255], **lower is better**;
    symmetric.

    Args:
        a, b: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    a, b = _grey(a=a, b=b)
    return float(np.sqrt(((a - b) ** 2).mean()))


def ncc(a: np.ndarray, b: np.ndarray) -> float:
    """Normalised cross-correlation (Pearson) over the whole image. In [-1, 1], higher is better; symmetric.

    0 where one image is constant, 1 where both are the same.

    Args:
        a, b: (H, W), grey levels 0..255.

    Raises:
        ValueError: images that do not fit.
    """
    a, b = _grey(a=a, b=b)
    return 1.0 if np.array_equal(a, b) else _correlation(a, b)


def registration_metrics(aligned: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """How close an aligned image is to the truth.

    Args:
        aligned: (H, W), grey levels 0..255.
        label: the truly aligned image, the same.

    Returns:
        ``rmse`` (grey levels, lower is better), ``ssim``, ``ncc`` and ``mi_label``, the mutual information in
        bits; it is not called ``mi``, which is a fusion metric.

    Raises:
        ValueError: images that are not grey, differ in shape, are under 11 pixels a side or leave 0..255.
    """
    aligned, label = _grey(11, aligned=aligned, label=label)
    return {
        "rmse": rmse(aligned, label),
        "ssim": ssim(aligned, label),
        "ncc": ncc(aligned, label),
        "mi_label": mutual_information(aligned, label),
    }


def _flow(name: str, flow: np.ndarray) -> np.ndarray:
    flow = np.asarray(flow, dtype=np.float64)
    if flow.ndim != 3 or flow.shape[0] != 2 or min(flow.shape[1:]) < 2:
        raise ValueError(f"{name}: expected a flow of shape (2, H, W), found shape {flow.shape}")
    if not np.isfinite(flow).all():
        raise ValueError(f"{name}: expected finite values, found NaN or infinity")
    return flow


def endpoint_error(flow: np.ndarray, true_flow: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Mean Euclidean distance between two flows, in pixels. At least 0, lower is better; symmetric.

    Baker et al., "A database and evaluation methodology for optical flow", IJCV 92, 2011.

    Args:
        flow, true_flow: (2, H, W), pixels, channel 0 is x.
        mask: (H, W), true where the error counts; everywhere if left out.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a mask without a pixel.
    """
    flow, true_flow = _flow("flow", flow), _flow("true_flow", true_flow)
    if flow.shape != true_flow.shape:
        raise ValueError(f"true_flow: expected shape {flow.shape} like flow, found {true_flow.shape}")
    error = np.hypot(*(flow - true_flow))
    if mask is None:
        return float(error.mean())
    mask = np.asarray(mask, dtype=bool)
    if mask.shape != error.shape:
        raise ValueError(f"mask: expected shape {error.shape}, found {mask.shape}")
    if not mask.any():
        raise ValueError("mask: expected at least one pixel, found none")
    return float(error[mask].mean())


def folding_share(flow: np.ndarray) -> float:
    """Share of pixels where p + flow(p) folds space: Jacobian determinant <= 0. In [0, 1], lower is better.

    Central differences, one-sided at the border, as in :func:`utils.maps.jacobian_determinant`.

    Args:
        flow: (2, H, W), pixels, channel 0 is x.

    Raises:
        ValueError: not a flow.
    """
    x, y = _flow("flow", flow)
    (x_y, x_x), (y_y, y_x) = np.gradient(x), np.gradient(y)
    return float(((1 + x_x) * (1 + y_y) - x_y * y_x <= 0).mean())


if __name__ == "__main__":
    from utils.scoring import main  # which needs the metrics above

    sys.exit(main())
