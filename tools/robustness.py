"""Measure how noise and one-sided structures disturb the alignment of the validation pairs.

    python -m tools.robustness --root DATA

The pairs are misaligned by known deformations, disturbed and aligned. Prints a table of endpoint errors. Deformations
and disturbances are the same each time. A one-sided structure is one that a single image of the pair shows.
"""

import sys
from collections.abc import Callable, Sequence

import pandas as pd
import torch
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from data.augmentation import add_one_sided
from data.dataset import VAL_SEED, Pair, PairDataset, seeded
from data.splits import add_group_pattern, find_table
from data.table import MODALITIES, modality_name, modality_of
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from training.validation import by_modality, validate
from utils.arguments import DEFAULT_CHECKPOINT, OneLineParser, print_anywhere
from utils.device import choose_device
from utils.files import FileError, InputError
from utils.messages import markdown_table

NOISE = 0.1
"""Standard deviation, in units of the grey range."""

Disturbance = Callable[[Pair, torch.Generator], Pair]


def leave(pair: Pair, generator: torch.Generator) -> Pair:
    """Return the pair unchanged."""
    return pair


def structures_in_fixed(pair: Pair, generator: torch.Generator) -> Pair:
    """Add lesions or blanks to the fixed image alone."""
    return pair._replace(fixed=add_one_sided(pair.fixed[None], generator)[0])


def structures_in_moving(pair: Pair, generator: torch.Generator) -> Pair:
    """Add lesions or blanks to the moving image alone."""
    return pair._replace(moving=add_one_sided(pair.moving[None], generator)[0])


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
        return self.disturb(self.pairs[row], seeded(VAL_SEED + 1, row))


def robustness(
    model: EDARFusion, pairs: PairDataset, device: torch.device, rows: Sequence[int] | None = None
) -> pd.DataFrame:
    """Measure the endpoint error under each of `CONDITIONS`.

    Args:
        model: in evaluation mode.
        pairs: without augmentation.
        device: where the model is.
        rows: of the pairs that count; None takes all.

    Returns:
        A row a condition and modality: ``condition``, ``modality``, ``pairs``, ``epe`` and ``zero``, the mean endpoint
        errors (px, inside the foreground) of the plain estimate and of zero flow, and ``better``, the share of pairs
        in which the estimate has the smaller one.
    """
    parts = []
    for condition, disturb in tqdm(CONDITIONS.items(), desc="conditions", leave=False):
        disturbed = DisturbedPairs(pairs, disturb)
        scores = validate(model, disturbed if rows is None else Subset(disturbed, rows), device)
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


def validation_pairs(
    root: str, modality: str, csv: str | None, group_pattern: str
) -> tuple[pd.DataFrame, list[int]]:
    """Find the validation pairs of all modalities, and the rows of those that are wanted.

    What is drawn for a pair follows from its row, so that it must not depend on the modality that is wanted.

    Raises:
        DataError, FileError: as `data.splits.find_table`.
    """
    arguments = {"csv": csv, "split": "val", "group_pattern": group_pattern}
    wanted = find_table(root, modality, **arguments)
    try:
        table = find_table(root, "all", **arguments)
    except FileError:  # a folder of one modality, or the others' pairs cannot be used
        table = wanted
    return table, [row for row, kind in enumerate(table["modality"]) if modality in (kind, "all")]


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.robustness``; return the exit status."""
    print_anywhere()
    parser = OneLineParser(
        prog="python -m tools.robustness", description=__doc__
    )
    parser.add_argument("--root", metavar="DIR", required=True,
                        help="folder of aligned pairs in the layout of the training data")
    parser.add_argument("--csv", metavar="FILE", help="table of pairs (python -m tools.make_csv)")
    add_group_pattern(parser)
    parser.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"), default="all",
                        help="which pairs (default: %(default)s)")
    parser.add_argument("--checkpoint", metavar="FILE", default=DEFAULT_CHECKPOINT,
                        help="trained network (default: checkpoints/edarfusion.safetensors)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto",
                        help="where to compute (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        table, rows = validation_pairs(options.root, options.modality, options.csv, options.group_pattern)
        device = choose_device(options.device)
        modality = modality_of(table["modality"].iloc[rows].unique())
        model = load_checkpoint(options.checkpoint, modality=modality, device=device).model
        result = robustness(model, PairDataset(table, options.root, seed=VAL_SEED), device, rows)
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(robustness_report(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
