"""Measure how far pairs that count as aligned are misaligned as they lie.

    python -m tools.label_check --root HARVARD --csv FOLDS/fold1.csv \\
        --checkpoint FOLDS/fold1/last.safetensors

A network aligns the pairs of the split val as they lie. It must not have been trained on their patients. Mutual
information knows nothing of the network, so it judges the answers. The moving images of a patient are displaced by
multiples of the affine part of the answers: by 0 they stay as they lie, by 1 they follow the answer, by -1 they go the
opposite way. If the pairs lie right, mutual information is highest at 0. Lengths are in px of 256.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import Pair
from data.splits import add_group_pattern, find_table
from data.table import DataError
from evaluation.metrics import normalised_mutual_information
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from tools.unseen import real_sets
from utils.arguments import OneLineParser, add_checkpoint, add_device, print_anywhere
from utils.command import run_command
from utils.device import choose_device
from utils.files import check_inputs_stay, write_bytes
from utils.geometry.affine import affine_part
from utils.geometry.foreground import as_weight, foreground, masked_means
from utils.geometry.warp import warp
from utils.messages import markdown_table

MULTIPLES = (-1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Multiples of the answer that mutual information chooses from."""

BLUR = 1.2
"""Sigma in px of a blur of both images. Otherwise the blur of every displacement would lower mutual information."""


class Estimates(NamedTuple):
    """What a network finds for pairs as they lie.

    Attributes:
        fixed, moving: (N, 1, H, W) in [0, 1], blurred.
        flow: (N, 2, H, W), px, the affine part of the answer.
        head: (N, 1, H, W), 1 in the head.
    """

    fixed: Tensor
    moving: Tensor
    flow: Tensor
    head: Tensor


@torch.no_grad()
def estimate(model: EDARFusion, pairs: Dataset[Pair], device: torch.device, batch: int = 8) -> Estimates:
    """Align pairs as they lie, by one averaged pass.

    Args:
        model: in evaluation mode.
        pairs: to take the fixed and the aligned moving images from.
        device: where the model is.
        batch: pairs at once.
    """
    parts = []
    for pair in DataLoader(pairs, batch):
        fixed, moving = pair.fixed.to(device), pair.moving_aligned.to(device)
        head = (foreground(moving, tuple(moving.shape[2:])) > 0.5).float()
        flow = affine_part(model(fixed, moving, 1, True).flow, as_weight(head))
        blurred = (gaussian_blur2d(image, (9, 9), (BLUR, BLUR)) for image in (fixed, moving))
        parts.append([part.cpu() for part in (*blurred, flow, head)])
    return Estimates(*map(torch.cat, zip(*parts, strict=True)))


def information(estimates: Estimates, multiple: float) -> float:
    """Compute the normalised mutual information of all pairs together, each displaced by a multiple of its answer."""
    displaced = warp(estimates.moving, multiple * estimates.flow)
    images = (image[:, 0].numpy().astype(np.float64) for image in (estimates.fixed, displaced))
    return normalised_mutual_information(*images, estimates.head[:, 0].numpy() > 0)


def judge(estimates: Estimates, groups: list[str]) -> pd.DataFrame:
    """Judge the answers to the pairs of each patient.

    Args:
        estimates: the answers.
        groups: patient of each pair.

    Returns:
        A row a patient: ``group``, ``pairs``, ``answer`` (mean length, px), ``best`` (the multiple of the answer with
        the highest mutual information), ``misalignment`` (the length of that, px), and normalised mutual information:
        ``nmi`` of the pairs as they lie, ``nmi_aligned`` by the answer, ``nmi_opposite``.

    Raises:
        DataError: no moving image of a patient shows tissue.
    """
    rows = []
    for group in dict.fromkeys(groups):
        members = torch.tensor([name == group for name in groups])
        patient = Estimates(*(part[members] for part in estimates))
        if not patient.head.any():
            raise DataError.at(f"patient {group}", "moving images with tissue", "none")
        values = {multiple: information(patient, multiple) for multiple in MULTIPLES}
        # Where nothing changes, as with an answer of 0, the pairs stay as they lie.
        best = max(values, key=lambda multiple: (values[multiple], -abs(multiple)))
        length = float(masked_means(patient.flow.norm(dim=1, keepdim=True), patient.head).mean())
        rows.append({
            "group": group, "pairs": len(patient.flow), "answer": length, "best": best,
            "misalignment": abs(best) * length, "nmi": values[0.0], "nmi_aligned": values[1.0],
            "nmi_opposite": values[-1.0],
        })  # fmt: skip
    return pd.DataFrame(rows)


def report(table: pd.DataFrame) -> str:
    """Format rows of `judge` with a column ``images``, and their means for each modality."""
    means = table.drop(columns="group").groupby("images", sort=False).mean().reset_index()
    means["pairs"] = table.groupby("images", sort=False)["pairs"].sum().to_numpy()
    lines = []
    for row in [*table.to_dict("records"), *means.assign(group="mean").to_dict("records")]:
        lengths = [f"{row[name]:.2f}" for name in ("answer", "best", "misalignment")]
        values = [f"{row[name]:.4f}" for name in ("nmi", "nmi_aligned", "nmi_opposite")]
        lines.append([row["images"], Path(row["group"]).name, str(row["pairs"]), *lengths, *values])
    names = ["patient", "pairs", "answer (px)", "best multiple", "misalignment (px)"]
    return markdown_table(["images", *names, "NMI as it lies", "aligned by the answer", "opposite"], lines)


def run(options: argparse.Namespace) -> None:
    """Check the pairs of the options, and print and write the figures.

    Raises:
        InputError: a file or the device cannot be used.
    """
    if options.output:
        check_inputs_stay(filter(None, (options.checkpoint, options.csv)), [options.output], "--output FILE")
    device = choose_device(options.device)
    model = load_checkpoint(options.checkpoint, device=device).model
    table = find_table(options.root, csv=options.csv, split="val", group_pattern=options.group_pattern)
    sets, parts = real_sets(table, options.root, options.group_pattern), []
    for pairs, _ in sets.values():
        pairs.check()
    for modality, (pairs, groups) in sets.items():
        parts.append(judge(estimate(model, pairs, device), groups).assign(images=modality))
    result = pd.concat(parts, ignore_index=True)
    print(report(result))
    if options.output:  # last, so that the figures are not lost where it cannot be written
        write_bytes(options.output, result.to_csv(index=False, lineterminator="\n").encode())


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.label_check``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.label_check", description=__doc__)
    parser.add_argument("--root", required=True, metavar="DIR",
                        help="folder of pairs that count as aligned, whose split val is checked")
    parser.add_argument("--csv", metavar="FILE",
                        help="table of the pairs below --root with another split, such as that of a fold")
    add_group_pattern(parser)
    add_checkpoint(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV table to write, with a row for each patient")
    add_device(parser)
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
