"""Maps that explain an alignment: local entropy, gate, reliability prior, gradient agreement, Jacobian determinant.

All functions are differentiable.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.filters import box_mean, min_max, sobel


def soft_histogram(grey: Tensor, bins: int = 16, sigma: float = 0.08) -> Tensor:
    """Compute the soft membership of grey values in histogram bins, and its entropy.

    Membership is Gaussian around `bins` centres on [0, 1], normalised over the bins. A value between two centres
    belongs to several bins and has an entropy of its own. `histogram_entropy` subtracts it, so that a constant image
    has 0.

    Args:
        grey: (...), in [0, 1].
        bins: number of bin centres.
        sigma: width of the membership, in units of the grey range; at least 0.076, as exponents overflow below it.

    Returns:
        (..., bins + 1): memberships, which sum to 1, then their entropy in nats.
    """
    grey = grey[..., None]
    centres = torch.linspace(0, 1, bins, device=grey.device)
    # The grey value's own square is left out of (grey - centre)^2: it is the same for all bins.
    exponent = torch.addcmul(centres.square() / (-2 * sigma**2), grey, centres / sigma**2)
    membership = exponent.exp()
    total = membership.sum(dim=-1, keepdim=True)
    membership = membership / total
    return torch.cat((membership, total.log() - (membership * exponent).sum(dim=-1, keepdim=True)), dim=-1)


def histogram_entropy(histogram: Tensor, window: int, stride: int = 1) -> Tensor:
    """Compute the Shannon entropy of the mean histogram around each pixel.

    Args:
        histogram: (B, H, W, bins + 1) from `soft_histogram`.
        window: odd side of the neighbourhood, in steps of `stride`, with reflected borders.
        stride: px between the results; histograms are averaged over blocks of that side.

    Returns:
        (B, 1, H / stride, W / stride), bits. 0 where nothing varies, below log2(bins), below 2 with the usual bins.
    """
    mean = box_mean(F.avg_pool2d(histogram.permute(0, 3, 1, 2), stride), window)
    shares, own = mean[:, :-1], mean[:, -1:]
    mixed = -(shares * shares.clamp_min(1e-12).log()).sum(dim=1, keepdim=True)
    return (mixed - own).clamp_min(0) / math.log(2)


def local_entropy(image: Tensor, window: int = 9, bins: int = 16, sigma: float = 0.08, stride: int = 1) -> Tensor:
    """Compute the Shannon entropy of the grey levels around each pixel.

    Args:
        image: (B, 1, H, W); scaled to [0, 1] per image first.
        window, stride: see `histogram_entropy`.
        bins, sigma: see `soft_histogram`.

    Returns:
        (B, 1, H / stride, W / stride), bits, as `histogram_entropy`.
    """
    return histogram_entropy(soft_histogram(min_max(image)[:, 0], bins, sigma), window, stride)


def entropy_difference(entropy_fixed: Tensor, entropy_moving: Tensor) -> Tensor:
    """Return |H_fixed - H_moving| in bits; all (B, 1, H, W)."""
    return (entropy_fixed - entropy_moving).abs()


def gate(
    entropy_fixed: Tensor, entropy_moving: Tensor, tau: float = 0.60, gamma: float = 0.5, floor: float = 0.15
) -> Tensor:
    """Compute the gate W: high where both images carry information and agree about how much, never zero.

    W = floor + (1 - floor) exp(-dH / tau)^gamma minmax((H_fixed + H_moving) / 2), smoothed 3 x 3.

    Args:
        entropy_fixed, entropy_moving: (B, 1, H, W), bits.
        tau: entropy difference at which the gate falls, bits.
        gamma: exponent of the fall.
        floor: smallest value.

    Returns:
        (B, 1, H, W) in [floor, 1].
    """
    difference = entropy_difference(entropy_fixed, entropy_moving)
    information = min_max((entropy_fixed + entropy_moving) / 2)
    raw = floor + (1 - floor) * torch.exp(-gamma * difference / tau) * information
    return box_mean(raw, 3)


def gradient_agreement(fixed: Tensor, aligned: Tensor, window: int = 5, noise: float = 0.02) -> Tensor:
    """Measure how well the gradients of two images agree, whatever the sign of the contrast.

    The squared cosine of the angle between the gradients, averaged over a window with the product of the gradient
    energies as weight (normalised gradient fields, Haber and Modersitzki 2006). Flat places agree.

    Args:
        fixed, aligned: (B, 1, H, W) in [0, 1].
        window: odd side of the neighbourhood, px.
        noise: gradient magnitude below which an edge does not count, intensity per px.

    Returns:
        (B, 1, H, W) in [0, 1].
    """
    (x_f, x_a), (y_f, y_a) = (slope.chunk(2, dim=1) for slope in sobel(torch.cat((fixed, aligned), dim=1)))
    dot = (x_f * x_a + y_f * y_a).square()
    energy = (x_f * x_f + y_f * y_f) * (x_a * x_a + y_a * y_a)
    dot, energy = box_mean(torch.cat((dot, energy), dim=1), window).split(1, dim=1)
    return (dot + noise**4) / (energy + noise**4)


def jacobian_determinant(flow: Tensor) -> Tensor:
    """Compute the Jacobian determinant of p + flow(p) by central differences (one-sided at the border).

    Args:
        flow: (B, 2, H, W), pixels, channel 0 is x.

    Returns:
        (B, 1, H, W); 1 for no change of area, <= 0 where space folds.
    """
    x_x, x_y = torch.gradient(flow[:, 0], dim=(2, 1))
    y_x, y_y = torch.gradient(flow[:, 1], dim=(2, 1))
    return ((1 + x_x) * (1 + y_y) - x_y * y_x).unsqueeze(1)


def reliability_prior(fixed: Tensor, moving: Tensor, moving_edges: Tensor, tau: float = 0.35) -> Tensor:
    """Compute the prior of R: high where features are similar, low at edges of the moving image.

    R0 = (cos01(f, m) + exp(-|f - m|_1 / tau)) / 2 and R = 0.15 + 0.85 mean5x5(R0 (1 - edge)^1.5), with `edge` the
    min-max-scaled Sobel magnitude of the moving image. Without it the skull in CT would dominate the matching.

    Args:
        fixed, moving: (B, C, h, w), features of unit length.
        moving_edges: (B, 1, H, W), gradient magnitude of the moving image at any resolution.
        tau: mean absolute feature difference that counts as large.

    Returns:
        (B, 1, h, w) in [0.15, 1].
    """
    cosine = (fixed * moving).sum(dim=1, keepdim=True)
    distance = (fixed - moving).abs().mean(dim=1, keepdim=True)
    similar = ((1 + cosine) / 2 + torch.exp(-distance / tau)) / 2
    edge = F.adaptive_max_pool2d(min_max(moving_edges), fixed.shape[2:])
    return 0.15 + 0.85 * box_mean(similar * (1 - edge).clamp_min(0) ** 1.5, 5)
