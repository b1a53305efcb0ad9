"""Measure how far pairs that count as aligned are misaligned as they lie.

    python -m tools.label_check --root HARVARD --csv FOLDS/fold1.csv \\
        --checkpoint FOLDS/fold1/last.safetensors

A network aligns the pairs of the split val as they lie. It must not have been trained on their patients. Mutual
information knows nothing of the network, so it judges the answers. The moving images of a patient are displaced by
multiples of the affine part of the answers: by 0 they stay as they lie, by 1 they follow the answer, by -1 they go the
opposite way. If the pairs lie right, mutual information is highest at 0. Lengths are in px of 256.

Then the pairs are deformed as in validation. The network aligns them, and so does the known deformation. If the pairs
lie right, mutual information is highest after the latter.
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
from data.table import DataError
from evaluation.metrics import normalised_mutual_information
from models.edarfusion import EDARFusion
from tools.unseen import add_options, load_network, validation_sets, write_rows
from utils.arguments import OneLineParser, print_anywhere
from utils.command import run_command
from utils.geometry.affine import affine_part
from utils.geometry.foreground import as_weight, foreground, masked_means
from utils.geometry.warp import resize_flow, warp
from utils.messages import markdown_table

MULTIPLES = (-1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Multiples of the answer that mutual information chooses from."""

BLUR = 1.2
"""Sigma in px of a blur of both images. Otherwise the blur of every displacement would lower mutual information."""

NMI = {
    "nmi": "NMI as it lies", "nmi_aligned": "aligned by the answer", "nmi_opposite": "opposite",
    "nmi_deformed": "deformed", "nmi_by_network": "aligned by the network", "nmi_by_truth": "by the truth",
}  # fmt: skip
"""Columns of normalised mutual information with their headings."""


class Estimates(NamedTuple):
    """What a network finds for pairs, as they lie and deformed.

    Attributes:
        fixed, moving: (N, 1, H, W) in [0, 1], blurred.
        flow: (N, 2, H, W), px, the affine part of the answer.
        head: (N, 1, H, W), 1 in the head.
        deformed: (N, 1, H, W), the moving image deformed as in validation, blurred.
        by_network, by_truth: (N, 1, H, W), `deformed` aligned by the network and by the known deformation.
    """

    fixed: Tensor
    moving: Tensor
    flow: Tensor
    head: Tensor
    deformed: Tensor
    by_network: Tensor
    by_truth: Tensor


@torch.no_grad()
def estimate(model: EDARFusion, pairs: Dataset[Pair], device: torch.device, batch: int = 8) -> Estimates:
    """Align pairs as they lie and as they are deformed, by one averaged pass.

    Args:
        model: in evaluation mode.
        pairs: with fixed deformations.
        device: where the model is.
        batch: pairs at once.
    """
    parts = []
    for pair in DataLoader(pairs, batch):
        pair = pair.to(device)
        images = pair.fixed, pair.moving_aligned, pair.moving
        fixed, moving, deformed = (gaussian_blur2d(image, (9, 9), (BLUR, BLUR)) for image in images)
        size = tuple(moving.shape[2:])
        head = (foreground(pair.moving_aligned, size) > 0.5).float()
        flow = affine_part(model(pair.fixed, pair.moving_aligned, 1, True).flow, as_weight(head))
        by_network = warp(deformed, model(pair.fixed, pair.moving, 1, True).flow)
        by_truth = warp(deformed, resize_flow(pair.flow, size))
        parts.append([part.cpu() for part in (fixed, moving, flow, head, deformed, by_network, by_truth)])
    return Estimates(*map(torch.cat, zip(*parts, strict=True)))


def information(estimates: Estimates, moving: Tensor) -> float:
    """Compute the normalised mutual information of fixed and moving images (N, 1, H, W), all pairs together."""
    images = (image[:, 0].numpy().astype(np.float64) for image in (estimates.fixed, moving))
    return normalised_mutual_information(*images, estimates.head[:, 0].numpy() > 0)


def judge(estimates: Estimates, groups: list[str]) -> pd.DataFrame:
    """Judge the answers to the pairs of each patient.

    Args:
        estimates: the answers.
        groups: patient of each pair.

    Returns:
        A row a patient: ``group``, ``pairs``, ``answer`` (mean length, px), ``best`` (the multiple of the answer with
        the highest mutual information), ``misalignment`` (the length of that, px), and normalised mutual information:
        ``nmi`` of the pairs as they lie, ``nmi_aligned`` by the answer, ``nmi_opposite``; of the deformed pairs
        ``nmi_deformed``, and ``nmi_by_network`` and ``nmi_by_truth`` after each alignment.

    Raises:
        DataError: no moving image of a patient shows tissue.
    """
    rows = []
    for group in dict.fromkeys(groups):
        members = torch.tensor([name == group for name in groups])
        patient = Estimates(*(part[members] for part in estimates))
        if not patient.head.any():
            raise DataError.at(f"patient {group}", "moving images with tissue", "none")
        values = {x: information(patient, warp(patient.moving, x * patient.flow)) for x in MULTIPLES}
        # Where nothing changes, as with an answer of 0, the pairs stay as they lie.
        best = max(values, key=lambda multiple: (values[multiple], -abs(multiple)))
        length = float(masked_means(patient.flow.norm(dim=1, keepdim=True), patient.head).mean())
        rows.append({
            "group": group, "pairs": len(patient.flow), "answer": length, "best": best,
            "misalignment": abs(best) * length, "nmi": values[0.0], "nmi_aligned": values[1.0],
            "nmi_opposite": values[-1.0],
            "nmi_deformed": information(patient, patient.deformed),
            "nmi_by_network": information(patient, patient.by_network),
            "nmi_by_truth": information(patient, patient.by_truth),
        })  # fmt: skip
    return pd.DataFrame(rows)


def report(table: pd.DataFrame) -> str:
    """Format rows of `judge` with a column ``images``, and their means for each modality."""
    means = table.drop(columns="group").groupby("images", sort=False).mean().reset_index()
    means["pairs"] = table.groupby("images", sort=False)["pairs"].sum().to_numpy()
    lines = []
    for row in [*table.to_dict("records"), *means.assign(group="mean").to_dict("records")]:
        lengths = [f"{row[name]:.2f}" for name in ("answer", "best", "misalignment")]
        values = [f"{row[name]:.4f}" for name in NMI]
        lines.append([row["images"], Path(row["group"]).name, str(row["pairs"]), *lengths, *values])
    names = ["patient", "pairs", "answer (px)", "best multiple", "misalignment (px)"]
    return markdown_table(["images", *names, *NMI.values()], lines)


def run(options: argparse.Namespace) -> None:
    """Check the pairs of the options, and print and write the figures.

    Raises:
        InputError: a file or the device cannot be used.
    """
    checkpoint, device = load_network(options)
    sets, parts = validation_sets(options), []
    for pairs, _ in sets.values():
        pairs.check()
    for modality, (pairs, groups) in sets.items():
        parts.append(judge(estimate(checkpoint.model, pairs, device), groups).assign(images=modality))
    result = pd.concat(parts, ignore_index=True)
    print(report(result))
    write_rows(result, options.output)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.label_check``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.label_check", description=__doc__)
    parser.add_argument("--root", required=True, metavar="DIR",
                        help="folder of pairs that count as aligned, whose split val is checked")
    add_options(parser, "patient")
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
