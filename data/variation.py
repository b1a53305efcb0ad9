"""How the training pairs of a batch differ from the images that they show: a few numbers for each pair."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from data import deformation
from data.deformation import BENCHMARK, SMALL, WIDE, DeformationRange

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

GREY = 0.4
"""Share of the training pairs whose moving image is taken without its colours, as PET and SPECT in grey files are."""

UPSIDE_DOWN, MIRRORED = 0.1, 0.5
"""Shares of the training pairs that are flipped along the columns and along the rows."""

ELLIPSES, LESIONS = 3, 5
"""At most so many one-sided structures an image, and simulated lesions a pair."""

STRUCTURES = 1 + 7 * ELLIPSES
"""Random numbers that `one_sided` takes for an image."""

_NUMBERS = {
    "wide": 1, "still": 1, "deformation": deformation.NUMBERS, "posed": 1, "pose": deformation.NUMBERS, "flips": 2,
    "shading": 2, "structures": 2 * (1 + STRUCTURES), "contrast": 2 * 3, "noise": 2 * 3, "grey": 1, "in_fixed": 1,
    "lesions": 1 + 6 * LESIONS,
}  # fmt: skip

NUMBERS = sum(_NUMBERS.values())
"""Random numbers that `draw_variation` takes for a pair."""


class Variation(NamedTuple):
    """How the pairs of a batch vary, float32. A strength of 0 leaves an image as it is.

    Attributes:
        deformation: (B, 6) of `data.deformation.parameters`: the misalignment.
        posed: (B,), 1 where the pair has a new pose.
        pose: (B, 6), as `deformation`; of a pair that is not posed it moves nothing.
        flips: (B, 2), 1 where the pair is upside down, and where it is mirrored.
        shading: (B, 2), octaves, of fixed and moving image.
        structures: (B, 2, `ELLIPSES`, 7) of `one_sided`, of fixed and moving image.
        contrast: (B, 2, 3), of fixed and moving image: gamma, gain, and standard deviation of faint noise.
        noise: (B, 2, 2), of fixed and moving image: standard deviation, and grain of 2^n px.
        colored: (B,), 0 where the colours are left out.
        in_fixed: (B,), 1 where the lesions of a grey pair are put into the fixed image.
        lesions: (B, `LESIONS`, 6), each place (a share of the possible ones), semi-axes (px), turn (radians), contrast,
            and side (below 0.5: bright).
    """

    deformation: Tensor
    posed: Tensor
    pose: Tensor
    flips: Tensor
    shading: Tensor
    structures: Tensor
    contrast: Tensor
    noise: Tensor
    colored: Tensor
    in_fixed: Tensor
    lesions: Tensor


def draw_variation(numbers: Tensor, size: tuple[int, int], wide: float, simulated: Sequence[bool]) -> Variation:
    """Choose how pairs vary.

    Args:
        numbers: (B, `NUMBERS`), uniform in [0, 1).
        size: height and width of the images, px.
        wide: share of the pairs that are deformed as `WIDE` says; the others are deformed as the benchmark.
        simulated: which pairs show simulated heads. They are always posed, and in a share `STILL` lie nearly right.
    """
    parts = dict(zip(_NUMBERS, numbers.split(list(_NUMBERS.values()), dim=1), strict=True))
    heads = torch.tensor(simulated)
    far, near = parts["wide"][:, 0] < wide, heads & (parts["still"][:, 0] < STILL)
    ranges = [SMALL if a else WIDE if b else BENCHMARK for a, b in zip(near.tolist(), far.tolist(), strict=True)]
    posed = heads | (parts["posed"][:, 0] < POSED)
    still = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    pose = deformation.parameters(parts["pose"], [POSE] * len(numbers), size)
    structures = parts["structures"].view(-1, 2, 1 + STRUCTURES)
    gamma, gain, faint = parts["contrast"].view(-1, 2, 3).unbind(dim=2)
    noisy, grain, strength = parts["noise"].view(-1, 2, 3).unbind(dim=2)
    chosen = Variation(
        deformation=deformation.parameters(parts["deformation"], ranges, size),
        posed=posed,
        pose=torch.where(posed[:, None], pose, still),
        flips=parts["flips"] < torch.tensor((UPSIDE_DOWN, MIRRORED)),
        shading=(2 * parts["shading"] - 1).clamp_min(0) / 2,
        structures=one_sided(structures[..., 1:], structures[..., 0] < ONE_SIDED, size[1]),
        contrast=torch.stack((2 ** (gamma - 0.5), 0.8 + 0.4 * gain, 0.02 * (2 * faint - 1).clamp_min(0)), dim=2),
        noise=torch.stack((0.12 * strength**2 * (noisy < NOISY), (3 * grain).floor()), dim=2),
        colored=parts["grey"][:, 0] >= GREY,
        in_fixed=parts["in_fixed"][:, 0] < 0.5,
        lesions=_lesions(parts["lesions"], size[1]),
    )
    return Variation(*(field.float() for field in chosen))


def one_sided(numbers: Tensor, drawn: Tensor, width: int) -> Tensor:
    """Choose one to three soft-edged ellipses: what one modality alone shows, or fails to show.

    Args:
        numbers: (..., `STRUCTURES`), uniform in [0, 1).
        drawn: (...), which images have any.
        width: of the image, px.

    Returns:
        (..., `ELLIPSES`, 7), each place (a share of the tissue), semi-axes (px; 4 to 28 of 256), softness of the edge
        (px), turn (radians), grey value and opacity. The grey value lies anywhere in the range, so there are bright
        lesions as well as blank places. The opacity is above one half, or 0 where there is no ellipse.
    """
    count, each = numbers[..., :1], numbers[..., 1:].unflatten(-1, (ELLIPSES, 7))
    place, a, b, softness, turn, grey, opacity = each.unbind(dim=-1)
    axes = (4 + 24 * torch.stack((a, b), dim=-1) ** 2) * width / 256
    present = drawn[..., None] & (torch.arange(ELLIPSES) < 1 + (ELLIPSES * count).floor())
    rest = torch.stack((0.5 + 2 * softness, math.pi * turn, grey, (1 + opacity) / 2 * present), dim=-1)
    return torch.cat((place[..., None], axes, rest), dim=-1)


def _lesions(numbers: Tensor, width: int) -> Tensor:
    """Choose two to five lesions (see `Variation`) from (B, 1 + 6 `LESIONS`) numbers in [0, 1)."""
    count, each = numbers[:, :1], numbers[:, 1:].unflatten(1, (LESIONS, 6))
    place, a, b, turn, contrast, side = each.unbind(dim=2)
    axes = (1.5 + 6 * torch.stack((a, 0.3 * a + 0.7 * b), dim=2)) * width / 256
    present = torch.arange(LESIONS) < 2 + ((LESIONS - 1) * count).floor()
    rest = torch.stack((math.pi * turn, (0.1 + 0.3 * contrast) * present, side), dim=2)
    return torch.cat((place[..., None], axes, rest), dim=2)
