"""Q^AB/F: how well the fused image keeps the edges of the sources."""

import numpy as np
from scipy import ndimage

from evaluation.metrics.common import check_sources, divide

STRENGTH, ORIENTATION = (0.9994, 15, 0.5), (0.9879, 22, 0.8)
"""Top, slope and middle of the sigmoids that say how much is kept of an edge (Xydeas and Petrovic 2000)."""


def qabf(fixed: np.ndarray, reference: np.ndarray, fused: np.ndarray, *, variant: str = "xydeas") -> float:
    """Compute Q^AB/F: share of the sources' edge information, strength and direction, that the fused image keeps.

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
    if variant not in _VARIANTS:
        raise ValueError(f"variant: expected one of {', '.join(_VARIANTS)}, found {variant!r}")
    return _VARIANTS[variant](*(sobel_zero_padded(image) for image in check_sources(fixed, reference, fused)))


def sobel_zero_padded(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the horizontal and vertical Sobel derivative (H, W) of an image (H, W), zero padded."""
    return ndimage.sobel(image, axis=1, mode="constant"), ndimage.sobel(image, axis=0, mode="constant")


def xydeas(*gradients: tuple[np.ndarray, np.ndarray]) -> float:
    """Compute `qabf` from the derivatives (dx, dy) of fixed, reference and fused image."""

    def keeps(strength: np.ndarray | float, orientation: np.ndarray | float) -> np.ndarray:
        return _sigmoid(strength, *STRENGTH) * _sigmoid(orientation, *ORIENTATION)

    # The sign before dy matters: a vertical edge (dx = 0) has the angle +pi/2 and angles are not wrapped.
    *sources, fused = ((np.hypot(dx, dy), np.arctan(divide(-dy, dx, np.inf))) for dx, dy in gradients)
    fused_strength, fused_angle = fused
    kept = total = 0.0
    for strength, angle in sources:
        ratio = divide(np.minimum(strength, fused_strength), np.maximum(strength, fused_strength), 0)
        ratio = np.where(strength == fused_strength, fused_strength, ratio)
        kept += (keeps(ratio, 1 - np.abs(angle - fused_angle) / (np.pi / 2)) * strength).sum()
        total += strength.sum()
    if total == 0:
        return 0.0 if fused_strength.any() else float(keeps(1, 1))
    return float(kept / total)


def zliu(*gradients: tuple[np.ndarray, np.ndarray]) -> float:
    """Compute the variant zliu, as `xydeas` does."""
    tiny = 1e-5
    strengths = [np.hypot(dx, dy) for dx, dy in gradients]
    *sources, fused = (np.where(strength == 0, tiny, strength) for strength in strengths)
    *angles, fused_angle = (np.arctan(dy / np.where(dx == 0, tiny, dx)) for dx, dy in gradients)
    kept = total = 0.0
    for strength, angle in zip(sources, angles, strict=True):
        ratio = np.minimum(strength, fused) / np.maximum(strength, fused)
        orientation = np.abs(np.abs(angle - fused_angle) - np.pi / 2) * 2 / np.pi
        kept = kept + _sigmoid(ratio, 1, 10, 0.5) * _sigmoid(orientation, 1, 20, 0.75) * strength
        total = total + strength
    return float((kept / total).mean())


def _sigmoid(x: np.ndarray | float, top: float, slope: float, middle: float) -> np.ndarray:
    return top / (1 + np.exp(-slope * (x - middle)))


_VARIANTS = {"xydeas": xydeas, "zliu": zliu}
