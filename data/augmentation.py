"""Variety for training pairs: pose, contrast, shading, structures of one image alone, noise."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from data.deformation import DeformationRange, random_field
from utils.filters import resize

POSE = DeformationRange(amplitude=(0.0, 2.0), sigma=(24.0, 40.0), translation=8.0, rotation=(-10.0, 10.0), scale=0.08)
"""How the pair as a whole is posed and shaped, both images together."""

POSED = 0.4
"""Share of the training pairs that are posed and shaped anew; most scans show the head as an atlas does."""

ONE_SIDED = 0.3
"""Share of the training images, fixed and moving each, with structures that the other one of the pair does not show."""

NOISY = 0.3
"""Share of the training images, fixed and moving each, with more than faint noise."""

STILL = 0.25
"""Share of the simulated training pairs that lie nearly right. Their truth is known not to hide an offset."""

REMAPPED = 0.2
"""Share of the other training pairs whose MRI gets other grey values, where a training simulates heads."""

GREY = 0.4
"""Share of the training pairs whose moving image is taken without its colours, as PET and SPECT in grey files are."""


def vary_contrast(images: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """Give images of one kind one random gamma (0.7 to 1.4) and gain (0.8 to 1.2), and each its own noise.

    Args:
        images: (B, C, H, W) in [0, 1]; half of the draws add noise with a standard deviation up to 0.02.
        generator: the only source of randomness.

    Returns:
        Images of the same shapes in [0, 1].
    """
    gamma, gain, noise = torch.rand(3, generator=generator).tolist()
    varied = [(0.8 + 0.4 * gain) * image ** (2 ** (gamma - 0.5)) for image in images]
    sigma = 0.02 * max(0.0, 2 * noise - 1)
    return [(image + sigma * torch.randn(image.shape, generator=generator)).clamp(0, 1) for image in varied]


def vary_shading(images: Tensor, generator: torch.Generator) -> Tensor:
    """Brighten and darken each image smoothly from place to place, as coils and uptake do, in half of the draws.

    Args:
        images: (1, C, H, W) in [0, 1]; each channel has a field of its own, up to half an octave deep (one sigma).
        generator: the only source of randomness.

    Returns:
        (1, C, H, W) in [0, 1].
    """
    channels, height, width = images.shape[1:]
    depth = torch.rand(1, channels, 1, 1, generator=generator).mul(2).sub(1).clamp_min(0) / 2
    field = random_field(channels, (height // 16, width // 16), width / 128, generator)
    return (images * 2 ** (depth * resize(field, (height, width)))).clamp(0, 1)


def add_one_sided(image: Tensor, generator: torch.Generator) -> Tensor:
    """Blend one to three soft-edged ellipses into the tissue: what one modality alone shows, or fails to show.

    Args:
        image: (1, 1, H, W) in [0, 1].
        generator: the only source of randomness; it gives semi-axes of 4 to 28 px of 256, a grey value anywhere in the
            range, so bright lesions as well as blank places, and an opacity above one half.

    Returns:
        (1, 1, H, W) in [0, 1].
    """
    height, width = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    tissue = (image[0, 0] > 0.05).nonzero()
    places = tissue if len(tissue) else torch.stack((y, x), dim=-1).flatten(0, 1)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        top, left = places[torch.randint(len(places), (), generator=generator)]
        a, b, softness, turn, grey, opacity = torch.rand(6, generator=generator)
        axes = (4 + 24 * torch.stack((a, b)) ** 2) * width / 256
        cosine, sine = (math.pi * turn).cos(), (math.pi * turn).sin()
        across = ((x - left) * cosine + (y - top) * sine) / axes[0]
        along = ((y - top) * cosine - (x - left) * sine) / axes[1]
        inside = torch.sigmoid((1 - (across**2 + along**2).sqrt()) * axes.min() / (0.5 + 2 * softness))
        image = image + (1 + opacity) / 2 * inside * (grey - image)
    return image


def add_noise(image: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise with a standard deviation up to 0.12, in grains of 1, 2 or 4 px.

    Args:
        image: (1, 1, H, W) in [0, 1].
        generator: the only source of randomness.

    Returns:
        (1, 1, H, W) in [0, 1].
    """
    grain = 2 ** int(torch.randint(3, (), generator=generator))
    sigma = 0.12 * torch.rand((), generator=generator) ** 2
    size = image.shape[2:]
    noise = torch.randn(1, 1, *(-(-side // grain) for side in size), generator=generator)
    return (image + sigma * resize(noise, size)).clamp(0, 1)


def sometimes(
    change: Callable[[Tensor, torch.Generator], Tensor], share: float, image: Tensor, generator: torch.Generator
) -> Tensor:
    """The image changed in that share of the draws, else as it is."""
    return change(image, generator) if torch.rand((), generator=generator) < share else image


def soft_ellipse(size: tuple[int, int], center: tuple[Tensor, Tensor], radii: Tensor, turn: Tensor) -> Tensor:
    """Draw an ellipse whose edge is about 1.5 px wide.

    Args:
        size: height and width, px.
        center: row and column.
        radii: (2,), the semi-axes, px.
        turn: of the first axis from the rows, radians.

    Returns:
        (H, W), 1 inside and 0 outside.
    """
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    top, left = center
    across = (x - left) * turn.cos() + (y - top) * turn.sin()
    along = (y - top) * turn.cos() - (x - left) * turn.sin()
    distance = ((across / radii[0]) ** 2 + (along / radii[1]) ** 2).sqrt()
    return ((1 - distance) * radii.min() / 1.5 + 0.5).clamp(0, 1)


def simulated_lesions(fixed: Tensor, aligned: Tensor, in_fixed: bool, generator: torch.Generator) -> Tensor:
    """Two to five small lesions, bright or dark, that one modality alone shows.

    They lie in soft tissue, where the image they are put into has room for them: ellipses with soft edges, diameters of
    3 to 15 px of 256, and a contrast of 0.1 to 0.4 of the grey range.

    Args:
        fixed, aligned: (1, 1, H, W) in [0, 1].
        in_fixed: which of both they are put into.
        generator: the only source of randomness.

    Returns:
        (1, 2, H, W), to be added to fixed and aligned image; all 0 where there is no soft tissue.
    """
    lesions = torch.zeros(1, 2, *fixed.shape[2:])
    host, low, high = (fixed, 0.1, 0.9) if in_fixed else (aligned, 0.06, 0.7)
    other = aligned if in_fixed else fixed
    soft = ((host > low) & (host < high) & (other > 0.04) & (other < 0.9))[0, 0].nonzero()
    if not len(soft):
        return lesions
    for _ in range(int(torch.randint(2, 6, (), generator=generator))):
        top, left = soft[torch.randint(len(soft), (), generator=generator)]
        a, b, turn, contrast, sign = torch.rand(5, generator=generator)
        radii = (1.5 + 6 * torch.stack((a, 0.3 * a + 0.7 * b))) * fixed.shape[3] / 256
        shape = soft_ellipse(tuple(fixed.shape[2:]), (top, left), radii, math.pi * turn)
        grey = host[0, 0, top, left]
        # Towards the side with more room, but not always.
        brighter = sign < 0.5 if 0.3 < grey < 0.6 else grey < 0.45
        size = (0.1 + 0.3 * contrast) * (1 if brighter else -1)
        lesion = lesions[0, 0 if in_fixed else 1]
        lesion.copy_(torch.where(shape > 0, size * shape, lesion))
    return lesions
