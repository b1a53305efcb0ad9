"""Measure how noise and one-sided structures disturb the alignment of the validation pairs.

    python -m tools.robustness --root DATA

The pairs are misaligned by known deformations, disturbed and aligned. Prints a table of endpoint errors. Deformations
and disturbances are the same each time. A one-sided structure is one that a single image of the pair shows.
"""

import argparse
import sys
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.augmentation import add_one_sided
from data.dataset import VAL_SEED, Pair, PairDataset, seeded
from data.variation import STRUCTURES, one_sided
from inference.validation_pairs import add_validation_options, load_validation_set
from models.edarfusion import EDARFusion
from training.validation import by_modality, validate
from utils.arguments import OneLineParser, print_anywhere
from utils.command import run_command
from utils.messages import markdown_table

NOISE = 0.1
"""Standard deviation, in units of the grey range."""

Disturbance = Callable[[Pair, torch.Generator], Pair]


def leave(pair: Pair, generator: torch.Generator) -> Pair:
    """Return the pair unchanged."""
    return pair


def _with_structures(image: Tensor, generator: torch.Generator) -> Tensor:
    numbers = torch.rand(1, STRUCTURES, generator=generator)
    return add_one_sided(image[None], one_sided(numbers, torch.tensor([True]), image.shape[2]))[0]


def structures_in_fixed(pair: Pair, generator: torch.Generator) -> Pair:
    """Add lesions or blanks to the fixed image alone."""
    return pair._replace(fixed=_with_structures(pair.fixed, generator))


def structures_in_moving(pair: Pair, generator: torch.Generator) -> Pair:
    """Add lesions or blanks to the moving image alone."""
    return pair._replace(moving=_with_structures(pair.moving, generator))


def noise(pair: Pair, generator: torch.Generator) -> Pair:
    """Add white noise of standard deviation `NOISE` to both images."""
    images = {name: getattr(pair, name) for name in ("fixed", "moving")}
    noisy = {name: x + NOISE * torch.randn(x.shape, generator=generator) for name, x in images.items()}
    return pair._replace(**{name: x.clamp(0, 1) for name, x in noisy.items()})


CONDITIONS: dict[str, Disturbance] = {
    "as they are": leave,
    "structures in the fixed image only": structures_in_fixed,
    "structures in the moving image only": structures_in_moving,
    "noise in both": noise,
}


class DisturbedPairs(Dataset[Pair]):
    """Pairs of another dataset with a disturbance, each its own and the same every time; the truth stays as it is."""

    def __init__(self, pairs: PairDataset, disturb: Disturbance) -> None:
        self.pairs, self.disturb = pairs, disturb

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, row: int) -> Pair:
        pair = self.pairs[row]
        return self.disturb(pair, seeded(VAL_SEED + 1, int(pair.number)))


def robustness(model: EDARFusion, pairs: PairDataset, device: torch.device) -> pd.DataFrame:
    """Measure the endpoint error under each of `CONDITIONS`.

    Args:
        model: in evaluation mode.
        pairs: without augmentation.
        device: where the model is.

    Returns:
        A row a condition and modality: ``condition``, ``modality``, ``pairs``, ``epe`` and ``zero``, the mean endpoint
        errors (px, inside the foreground) of the plain estimate and of zero flow, and ``better``, the share of pairs
        in which the estimate has the smaller one.
    """
    parts = []
    for condition, disturb in tqdm(CONDITIONS.items(), desc="conditions", leave=False):
        scores = validate(model, DisturbedPairs(pairs, disturb), device)
        means = by_modality(scores)[["epe", "zero", "better"]]
        parts.append(means.assign(condition=condition, pairs=scores["modality"].value_counts()).reset_index())
    return pd.concat(parts, ignore_index=True)


def robustness_report(table: pd.DataFrame) -> str:
    """Format one line per condition: endpoint error, zero flow's error and the share of pairs improved by modality."""
    kinds = list(table["modality"].unique())
    lines = []
    for condition, rows in table.groupby("condition", sort=False):
        cells = [f"{row.epe:.2f} of {row.zero:.2f} ({row.better:.0%})" for row in rows.itertuples()]
        lines.append([condition, *cells])
    return markdown_table(["endpoint error of zero flow's, px (pairs improved)", *kinds], lines)


def run(options: argparse.Namespace) -> None:
    """Measure the network of the options on their pairs and print the table.

    Raises:
        InputError: pairs or network cannot be used.
    """
    model, pairs, device = load_validation_set(options)
    print(robustness_report(robustness(model, pairs, device)))


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.robustness``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.robustness", description=__doc__)
    add_validation_options(parser)
    return run_command(parser.prog, run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
