"""Losses that teach fusion: keep both images' structure, as if they had been truly aligned."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

from data.table import MODALITIES
from evaluation.metrics.edge_preservation import ORIENTATION, STRENGTH
from evaluation.metrics.human_vision import BLOCK, contrast_sensitivity
from evaluation.metrics.visual_information import EYE_NOISE, SCALES
from models.fusion import plain_fusion
from models.room import SATURATION_KEPT
from utils.filters import sobel

IMITATION = (40.0, 160.0)  # weights of grey values and of their slopes where another network is imitated
SSIM_WINDOW = (11, 1.5)  # px, window and sigma
TONE = (17, 3.4)  # px, window and sigma of the local means that make up the tone
LESION_KEPT = 0.9  # of a simulated lesion's contrast is asked for
ROUNDING = 1e-3  # a quarter of a grey level; less is no change that anybody sees
BESIDE = 0.3  # of the weight of a lesion is that of its surroundings, which must not change

COLORED_LESION = 0.25  # times the weight of lesions for coloured pairs, whose lesions survive and cost saturation

GREY_TRACER = {"information": 1.5, "lesion": 2.5}
"""Times the usual weight for grey PET and SPECT. Their edges are easy to keep. Small lesions in a tracer are not."""

COLORED_TRACER = {
    "PET": {"information": 7.0, "visibility": 3.5, "saturation": 0.35},
    "SPECT": {"information": 0.4, "visibility": 5.0, "gradient": 2.0, "tone": 0.5},
}
"""Times the usual weight for coloured PET and SPECT. PET leaves room for contrast. SPECT covers the brain with strong
colours. A network has to choose between the MRI's edges and its contrast there; `inference.luma_fit` adds contrast."""

Scorer = Callable[[Tensor], Tensor]
"""A loss of fused images (B, 1, H, W) with all that depends on their sources made; gives (B,)."""


class FusionLoss(NamedTuple):
    """Weighted sum and its components; the field names are the columns of the training log."""

    total: Tensor
    intensity: Tensor
    tone: Tensor
    gradient: Tensor
    ssim: Tensor
    information: Tensor
    visibility: Tensor
    lesion: Tensor
    saturation: Tensor
    consistency: Tensor


class FusionWeights(NamedTuple):
    """Weights of the components of `FusionLoss`, each one number or one for each pair, (B,)."""

    intensity: float | Tensor = 2.0
    tone: float | Tensor = 7.0
    gradient: float | Tensor = 4.0
    ssim: float | Tensor = 0.1
    information: float | Tensor = 0.65
    visibility: float | Tensor = 5.0
    lesion: float | Tensor = 4.0
    saturation: float | Tensor = 4.0
    consistency: float | Tensor = 1.0


def for_pairs(weights: FusionWeights, modality: Tensor, colored: Tensor) -> FusionWeights:
    """Choose the weights for pairs.

    Args:
        weights: of any pair.
        modality: (B,), indices in `data.table.MODALITIES`.
        colored: bool (B,), whether the moving image has colours.

    Returns:
        Weights of which some are one for each pair, (B,).
    """
    lesion = torch.where(colored, COLORED_LESION * weights.lesion, weights.lesion)
    chosen = weights._replace(lesion=lesion)._asdict()
    for name, colored_factors in COLORED_TRACER.items():
        shown = modality == MODALITIES.index(name)
        for factors, pairs in ((GREY_TRACER, shown & ~colored), (colored_factors, shown & colored)):
            for component, factor in factors.items():
                usual = getattr(weights, component)
                chosen[component] = torch.where(pairs, factor * usual, chosen[component])
    return FusionWeights(**chosen)


def intensity_error(target: Tensor, *fused: Tensor) -> Tensor:
    """Average the absolute difference from the target; all (B, 1, H, W) in [0, 1]; (n, B) for n fused images."""
    return torch.stack([(image - target).abs().mean(dim=(1, 2, 3)) for image in fused])


def tone_error(target: Tensor, *fused: Tensor) -> Tensor:
    """Compute `intensity_error` of local means (B, 1, H, W), so that what one image alone shows keeps its shade.

    The losses on edges and contrast do not mind a skull or an infarct that vanishes between its edges.
    """
    return intensity_error(*(local_mean(image, *TONE) for image in (target, *fused)))


def lesion_loss(lesion: Tensor, fused: Tensor, fused_with_lesion: Tensor) -> Tensor:
    """Compute the share of a simulated lesion's contrast that the fused image lacks, and the change beside it.

    The lesion is in one source alone, and all else is the same, so the difference of the two fused images is what is
    seen of it, whatever lies around. Contrast beyond `LESION_KEPT` is not asked for.

    Args:
        lesion: (B, 1, H, W), what was added to a source; 0 where there is no lesion.
        fused, fused_with_lesion: (B, 1, H, W) in [0, 1], without it and with it.

    Returns:
        (1, B), 0 where all is kept and nothing else changes; 0 for pairs without a lesion.
    """
    shown = (fused_with_lesion - fused) * lesion.sign()
    lacking = (LESION_KEPT * lesion.abs() - shown).clamp_min(0) * (lesion != 0)
    # Far from a lesion the two images differ by rounding alone, which must have no slope.
    beside = F.smooth_l1_loss(fused_with_lesion, fused, reduction="none", beta=ROUNDING) * (lesion == 0)
    size = lesion.abs().sum(dim=(1, 2, 3))
    share = (lacking + BESIDE * beside).sum(dim=(1, 2, 3)) / size.clamp_min(ROUNDING)
    return torch.where(size > ROUNDING, share, 0)[None]


def saturation_loss(room: Tensor, *fused: Tensor) -> Tensor:
    """Compute the share of strong colours' saturation that the fused luma leaves no room for.

    The room bounds what a pixel may lose. This is the price of it, so that pixels pay where the fixed image's detail is
    worth it.

    Args:
        room: (B, 3, H, W), `models.room.room_of` the truly aligned moving image.
        fused: (B, 1, H, W) in [0, 1].

    Returns:
        (n, B) for n fused images, 0 to 1; 0 of grey images.
    """
    high = room[:, 1:2]
    # From the luma of a colour at full brightness up to white saturation falls from all to nothing.
    whole = ((1 - high) / SATURATION_KEPT).clamp_max(1) * room[:, 2:]
    size = whole.sum(dim=(1, 2, 3)).clamp_min(1)
    return torch.stack([(whole - (1 - image)).clamp_min(0).sum(dim=(1, 2, 3)) / size for image in fused])


def edge_loss(fixed: Tensor, moving_aligned: Tensor, *fused: Tensor) -> Tensor:
    """Compute one minus edge preservation Q^AB/F (Xydeas and Petrovic 2000), in a differentiable form.

    Args:
        fixed, moving_aligned, fused: (B, 1, H, W) in [0, 1].

    Returns:
        (n, B) for n fused images, 0 to 1.
    """
    return torch.stack([*map(edge_scorer(fixed, moving_aligned), fused)])


def edge_scorer(fixed: Tensor, moving_aligned: Tensor) -> Scorer:
    """Prepare `edge_loss` of a pair for many fused images (B, 1, H, W); each gives (B,)."""
    sources = [_edges(source) for source in (fixed, moving_aligned)]
    weight = sum(strength.sum(dim=(1, 2, 3)) for strength, _ in sources)

    def score(fused: Tensor) -> Tensor:
        strength_f, angle_f = _edges(fused)
        kept = 0.0
        for strength, angle in sources:
            ratio = torch.minimum(strength, strength_f) / torch.maximum(strength, strength_f)
            turn = ((angle - angle_f).abs() - math.pi / 2).abs() / (math.pi / 2)
            kept = kept + (_quality(ratio, *STRENGTH) * _quality(turn, *ORIENTATION) * strength).sum(dim=(1, 2, 3))
        return 1 - kept / weight

    return score


def _quality(share: Tensor, top: float, slope: float, middle: float) -> Tensor:
    return top * torch.sigmoid(slope * (share - middle))


def _edges(image: Tensor, floor: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Compute strength and orientation (-pi/2 to pi/2) of the edges. Strength is at least `floor`: ratios exist."""
    x, y = sobel(image)
    # Where an image is flat the angle has no meaning and its derivative no bound.
    flat = x.abs() + y.abs() < 1e-5
    x = torch.where(flat, torch.ones_like(x), x)
    strength = torch.where(flat, torch.zeros_like(x), (x.square() + y.square()).sqrt())
    return strength + floor, torch.atan(torch.where(flat, 0, y) / torch.where(x.abs() < 1e-5, 1e-5, x))


def structure_loss(fixed: Tensor, moving_aligned: Tensor, *fused: Tensor) -> Tensor:
    """Compute one minus SSIM (Wang et al. 2004) with the image that varies more at each place.

    Args:
        fixed, moving_aligned, fused: (B, 1, H, W) in [0, 1].

    Returns:
        (n, B) for n fused images, 0 to 2.
    """
    sources = (fixed, moving_aligned)
    moments = [_moments(source, *SSIM_WINDOW) for source in sources]
    spread = [variance + 1e-4 for _, variance in moments]
    shares = [each / (spread[0] + spread[1]) for each in spread]
    likeness = []
    for image in fused:
        own = _moments(image, *SSIM_WINDOW)
        maps = (_ssim(source, image, of_source, own) for source, of_source in zip(sources, moments, strict=True))
        likeness.append(sum(share * map_ for share, map_ in zip(shares, maps, strict=True)))
    return 1 - torch.stack(likeness).mean(dim=(2, 3, 4))


def _ssim(a: Tensor, b: Tensor, moments_a: tuple[Tensor, Tensor], moments_b: tuple[Tensor, Tensor]) -> Tensor:
    """Map SSIM as kornia does, whose windows are copied to the device anew in each step and convolved."""
    (mean_a, variance_a), (mean_b, variance_b) = moments_a, moments_b
    covariance = local_mean(a * b, *SSIM_WINDOW) - mean_a * mean_b
    c_1, c_2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c_1) * (2 * covariance + c_2)
    return likeness / ((mean_a.square() + mean_b.square() + c_1) * (variance_a + variance_b + c_2))


def information_loss(fixed: Tensor, moving_aligned: Tensor, *fused: Tensor) -> Tensor:
    """Compute one minus visual information fidelity VIFF (Han et al. 2013), in a differentiable form.

    Contrast counts here: an image whose contrast is halved has all its edges in place, yet tells the eye less.

    Args:
        fixed, moving_aligned, fused: (B, 1, H, W) in [0, 1].

    Returns:
        (n, B) for n fused images, at most 1; negative where contrast is enhanced.
    """
    return torch.stack([*map(information_scorer(fixed, moving_aligned), fused)])


def information_scorer(fixed: Tensor, moving_aligned: Tensor) -> Scorer:
    """Prepare `information_loss` of a pair for many fused images (B, 1, H, W); each gives (B,)."""
    sources, levels = [fixed, moving_aligned], []
    for scale, (size, weight) in enumerate(SCALES):
        if scale:
            sources = [local_mean(image, size, size / 5, 2) for image in sources]
        levels.append((sources, [_moments(source, size, size / 5) for source in sources] if weight else []))

    def score(fused: Tensor) -> Tensor:
        fidelity = 0.0
        for scale, ((size, weight), (sources, moments)) in enumerate(zip(SCALES, levels, strict=True)):
            if scale:
                fused = local_mean(fused, size, size / 5, 2)
            if weight:
                fidelity = fidelity + weight * _fidelity(sources, moments, fused, size)
        return 1 - fidelity / sum(weight for _, weight in SCALES)

    return score


_KEPT: dict[tuple, Tensor] = {}
"""Matrices by what they depend on. A compiler looks through `lru_cache` and would make them in every step."""

_MOST_KEPT = 64
"""Number of matrices, some ten for each size of images. The oldest go first."""


def _keep(key: tuple, matrix: Tensor) -> None:
    while len(_KEPT) >= _MOST_KEPT:
        _KEPT.pop(next(iter(_KEPT)))
    _KEPT[key] = matrix


def make_matrices(size: tuple[int, int], device: torch.device) -> None:
    """Make the matrices that the losses need for images of a size (H, W); a compiled step must find them made."""
    if ("sensitivity", *size, device) in _KEPT:
        return
    blank = torch.zeros(1, 1, *size, device=device)
    structure_loss(blank, blank, blank)
    information_loss(blank, blank, blank)
    visibility_loss(blank, blank, blank)


def _blurring(length: int, size: int, sigma: float, step: int, device: torch.device) -> Tensor:
    """Make columns (length, length / step) that blur a row of an image and keep every step-th result.

    As a product with a matrix the wide windows here take a tenth of a convolution's time on a CPU.
    """
    key = ("blurring", length, size, sigma, step, device)
    if key not in _KEPT:
        # What is kept must serve all, whoever asks first.
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            unit = torch.eye(length, device=device)[None, None]
            _keep(key, gaussian_blur2d(unit, (1, size), (sigma, sigma))[0, 0, :, ::step])
    return _KEPT[key]


def local_mean(image: Tensor, size: int, sigma: float, step: int = 1) -> Tensor:
    """Blur images (B, C, H, W) with a Gaussian window and keep every step-th pixel of every step-th row.

    Args:
        image: any values.
        size: of the window, odd, px.
        sigma: px.
        step: 1 keeps the size.
    """
    rows, columns = (_blurring(length, size, sigma, step, image.device) for length in image.shape[2:])
    return rows.T @ image @ columns


def _moments(image: Tensor, size: int, sigma: float) -> tuple[Tensor, Tensor]:
    """Compute local mean and variance under a Gaussian window."""
    mean, square = (local_mean(values, size, sigma) for values in (image, image.square()))
    return mean, (square - mean.square()).clamp_min(0)


def _fidelity(sources: list[Tensor], moments: list[tuple[Tensor, Tensor]], fused: Tensor, size: int) -> Tensor:
    """Compute the information about the sources in the fused image, as a share of that in themselves."""
    mean_f, variance_f = _moments(fused, size, size / 5)
    kept, total, gains = [], [], []
    for source, (mean, variance) in zip(sources, moments, strict=True):
        covariance = local_mean(source * fused, size, size / 5) - mean * mean_f
        gain = (covariance / (variance + 1e-6)).clamp_min(0)
        noise = (variance_f - gain * covariance).clamp_min(0)
        kept.append(torch.log1p(gain.square() * variance / (noise + EYE_NOISE)))
        total.append(torch.log1p(variance / EYE_NOISE))
        gains.append(gain.detach())
    # As in the metric, the source of which less is seen speaks for its place.
    less = gains[0] < gains[1]
    kept, total = (torch.where(less, *maps).sum(dim=(1, 2, 3)) + 1e-3 for maps in (kept, total))
    return kept / total


def visibility_loss(fixed: Tensor, moving_aligned: Tensor, *fused: Tensor) -> Tensor:
    """Compute the root of Q_CV (Chen and Varshney 2007): visible error where each source is most salient.

    Args:
        fixed, moving_aligned, fused: (B, 1, H, W) in [0, 1].

    Returns:
        (n, B) for n fused images, grey values in [0, 1]. The metric is the square in grey levels, for images that fill
        the range 0 to 255.
    """
    return torch.stack([*map(visibility_scorer(fixed, moving_aligned), fused)])


def visibility_scorer(fixed: Tensor, moving_aligned: Tensor) -> Scorer:
    """Prepare `visibility_loss` of a pair for many fused images (B, 1, H, W); each gives (B,)."""
    sources = torch.cat((fixed, moving_aligned), dim=1)
    # Zeros around the images, as in the metric.
    x, y = (slopes[..., 1:-1, 1:-1] for slopes in sobel(F.pad(sources, (1, 1, 1, 1))))
    saliency = _block_sums((x * x + y * y).sqrt() ** 5) + 1e-12
    weight = saliency / saliency.sum(dim=(1, 2, 3), keepdim=True)
    size = tuple(fixed.shape[2:])
    sensitivity = _sensitivity(size, fixed.device)

    def score(fused: Tensor) -> Tensor:
        seen = torch.fft.irfft2(torch.fft.rfft2(sources - fused) * sensitivity, s=size)
        square = (weight * _block_sums(seen.square())).sum(dim=(1, 2, 3)) / BLOCK**2
        return (square + 1e-8).sqrt()

    return score


def _sensitivity(size: tuple[int, int], device: torch.device) -> Tensor:
    """Bring `contrast_sensitivity` to a device."""
    key = ("sensitivity", *size, device)
    if key not in _KEPT:
        with torch.inference_mode(False):
            _keep(key, torch.from_numpy(contrast_sensitivity(size)).to(device, torch.float32))
    return _KEPT[key]


def _block_sums(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, BLOCK, ceil_mode=True, divisor_override=1)


class Fused(NamedTuple):
    """What a fusion makes of a batch, each (B, 1, H, W) in [0, 1].

    Attributes:
        predicted: with the predicted alignment.
        true: with the true one; held fixed.
        with_lesion: with the predicted one, and a lesion in one source.
    """

    predicted: Tensor
    true: Tensor
    with_lesion: Tensor


def fusion_loss(
    fixed: Tensor,
    moving_aligned: Tensor,
    room: Tensor,
    lesion: Tensor,
    fused: Fused,
    weights: FusionWeights = FusionWeights(),
) -> FusionLoss:
    """Compare what was fused under the predicted alignment with what it should show.

    Targets come from the fixed and the truly aligned moving image, never from a misaligned one. The alignment
    consistency constraint asks that fusing under the predicted alignment give what fusing under the true one gives;
    the latter is held fixed there, so that it cannot be pulled towards the ghosts of the former.

    Args:
        fixed, moving_aligned: (B, 1, H, W) in [0, 1].
        room: (B, 3, H, W), `models.room.room_of` the truly aligned moving image.
        lesion: (B, 1, H, W), what was added to one source for `fused.with_lesion`.
        fused: the fused images.
        weights: of the components.

    Returns:
        `FusionLoss` of scalars, means over the batch.
    """
    image = fused.predicted
    target = plain_fusion(fixed, moving_aligned, room)
    losses = (edge_loss, structure_loss, information_loss, visibility_loss)
    parts = [intensity_error(target, image), tone_error(target, image)]
    parts += [loss(fixed, moving_aligned, image) for loss in losses]
    parts += [lesion_loss(lesion, image, fused.with_lesion), saturation_loss(room, image)]
    parts += [intensity_error(fused.true.detach(), image)]
    parts = [part[0] for part in parts]
    total = sum(w * part for w, part in zip(weights, parts, strict=True))
    return FusionLoss(total.mean(), *(part.mean() for part in parts))


def imitation_loss(fused: Tensor, taught: Tensor) -> FusionLoss:
    """Compare what was fused with what another network fuses of the same images: grey values and their slopes.

    Args:
        fused: (B, 1, H, W), made with the predicted alignment.
        taught: (B, 1, H, W), the other network's.

    Returns:
        `FusionLoss` of scalars, means over the batch: the grey values' as intensity, the slopes' as gradient, else 0.
    """
    grey = (fused - taught).abs().mean()
    slopes = torch.cat(sobel(fused - taught)).abs().mean()
    parts = dict.fromkeys(FusionLoss._fields[1:], torch.zeros_like(grey)) | {"intensity": grey, "gradient": slopes}
    return FusionLoss(IMITATION[0] * grey + IMITATION[1] * slopes, **parts)
