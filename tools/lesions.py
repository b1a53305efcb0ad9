"""Measure how much of a lesion that one image alone shows survives in the fused image.

    python -m tools.lesions --root DATA

Small discs, bright or dark, are put into the soft tissue of one image of each validation pair, which is fused with and
without them under its true alignment. Prints which share of their contrast the fused image shows, by modality, image
and size. PET and SPECT are taken in colour for lesions of the MRI, and in grey for lesions of the tracer.
Coloured SPECT is fitted as in the test command (`inference.luma_fit`).
"""

import argparse
import sys
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from data.augmentation import soft_ellipse
from data.dataset import VAL_SEED, PairDataset, seeded
from data.table import MODALITIES
from inference.luma_fit import fit_luma
from inference.options import default_luma_steps
from inference.validation_pairs import add_validation_options, load_validation_set
from losses.steps import colored_room
from models.edarfusion import EDARFusion
from models.outputs import Registration
from utils.arguments import OneLineParser, print_anywhere
from utils.command import run_command
from utils.messages import markdown_table

DIAMETERS = (3, 7, 15)
"""Of the lesions, px."""

CONTRAST = 0.25
"""Of the lesions, as a share of the grey range."""

A_SIDE = 4
"""Lesions of one size and sign in an image at a time."""


def lesions_in(host: Tensor, other: Tensor, diameter: int, sign: int, generator: torch.Generator) -> list[Tensor]:
    """Draw lesions where the host has room for them and both images show soft tissue.

    Args:
        host, other: (1, 1, H, W) in [0, 1], the image that they are to be put into and the other one.
        diameter: px.
        sign: 1 for bright lesions, -1 for dark ones.
        generator: the only source of randomness.

    Returns:
        (H, W) each, to be added to the host; none where there is no such place.
    """
    room = host < 0.95 - CONTRAST if sign > 0 else host > 0.05 + CONTRAST
    soft = (room & (host > 0.08) & (host < 0.8) & (other > 0.04) & (other < 0.8))[0, 0].nonzero()
    radii, turn = torch.full((2,), diameter / 2), torch.zeros(())
    lesions: list[Tensor] = []
    for _ in range(10 * A_SIDE if len(soft) else 0):
        center = soft[torch.randint(len(soft), (), generator=generator)]
        rows, columns = (torch.arange(side) - middle for side, middle in zip(host.shape[2:], center, strict=True))
        lesion = sign * CONTRAST * soft_ellipse(rows[:, None], columns, radii, turn)
        if len(lesions) < A_SIDE and not any((lesion * earlier).any() for earlier in lesions):
            lesions.append(lesion)
    return lesions


@torch.inference_mode()
def survival(model: EDARFusion, pairs: PairDataset, device: torch.device) -> pd.DataFrame:
    """Fuse truly aligned pairs with and without simulated lesions.

    Args:
        model: in evaluation mode.
        pairs: without augmentation.
        device: where the model is.

    Returns:
        A row a lesion: ``modality``, ``image`` (fixed or moving), ``sign``, ``diameter`` (px), ``kept``, the mean
        change of the fused image inside the lesion over that of its image, and ``beside``, the mean absolute change
        from 4 to 8 px around it over the lesion's contrast.
    """
    rows = []
    for number in tqdm(range(len(pairs)), desc="pairs", leave=False):
        pair = pairs[number]
        fixed, aligned, color = (x[None].to(device) for x in (pair.fixed, pair.moving_aligned, pair.color))
        registration, modality = model.register(fixed, aligned), MODALITIES[pair.modality]
        for image in ("fixed", "moving"):
            shown_in = color if image == "fixed" else torch.zeros_like(color)
            fuse = partial(_fused, model, registration, shown_in, default_luma_steps(modality))
            before = fuse(fixed, aligned)
            for sign in (1, -1):
                for diameter in DIAMETERS:
                    kind = {"modality": modality, "image": image, "sign": sign, "diameter": diameter}
                    generator = seeded(VAL_SEED + int(pair.number), diameter * sign + 100)
                    host, other = (fixed, aligned) if image == "fixed" else (aligned, fixed)
                    lesions = lesions_in(host.cpu(), other.cpu(), diameter, sign, generator)
                    if not lesions:
                        continue
                    hurt = (host + torch.stack(lesions).sum(dim=0).to(device)).clamp(0, 1)
                    after = fuse(hurt, aligned) if image == "fixed" else fuse(fixed, hurt)
                    shown, true = (after - before).cpu().numpy(), (hurt - host)[0, 0].cpu().numpy()
                    rows += [kind | _measured(lesion.numpy(), shown, true) for lesion in lesions]
    return pd.DataFrame(rows)


def _fused(
    model: EDARFusion, registration: Registration, color: Tensor, steps: int, fixed: Tensor, aligned: Tensor
) -> Tensor:
    fused = model.fuse(fixed, aligned, registration, colored_room(color, aligned)).fused
    return (fit_luma(fixed, color, fused, steps) if color.any() else fused)[0, 0]


def _measured(lesion: np.ndarray, shown: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Measure a lesion in shares of its contrast: how much the fused image shows, and what changes around it."""
    inside = np.abs(lesion) > CONTRAST / 2
    y, x = np.nonzero(inside)
    rows, columns = np.indices(lesion.shape)
    distance = np.hypot(rows - y.mean(), columns - x.mean()) - np.sqrt(inside.sum() / np.pi)
    ring = (distance > 4) & (distance < 8) & (true == 0)
    beside = np.abs(shown[ring]).mean() / CONTRAST if ring.any() else np.nan
    return {"kept": shown[inside].mean() / true[inside].mean(), "beside": beside}


def survival_report(table: pd.DataFrame) -> str:
    """Format the mean share kept, a line per modality, image and sign, a column per diameter."""
    lines = []
    for (modality, image, sign), rows in table.groupby(["modality", "image", "sign"], sort=False):
        kept = [f"{rows[rows['diameter'] == diameter]['kept'].mean():.2f}" for diameter in DIAMETERS]
        least = f"{(rows['kept'] >= 0.7).mean():.0%}"
        beside = f"{rows['beside'].mean():.3f}"
        lines.append([modality, image, "bright" if sign > 0 else "dark", *kept, least, beside, str(len(rows))])
    sizes = [f"{diameter} px" for diameter in DIAMETERS]
    return markdown_table(["", "lesion in", "", *sizes, "0.7 and more", "beside", "lesions"], lines)


def run(options: argparse.Namespace) -> None:
    """Measure the network of the options on their pairs and print the table.

    Raises:
        InputError: pairs or network cannot be used.
    """
    model, pairs, device = load_validation_set(options)
    print(survival_report(survival(model, pairs, device)))


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.lesions``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.lesions", description=__doc__)
    add_validation_options(parser)
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
