"""Measure how well a network aligns heads that it was not trained on.

    python -m tools.unseen --heads HEADS                   # simulated pairs
    python -m tools.unseen --root HARVARD --csv fold1.csv  # pairs of a table

Endpoint errors are in px of 256, inside the head. `removed` is the share of zero flow's error that the estimate takes
away, with a 95 % interval by resampling patients. Labels of real pairs contain a small misalignment. `own` is free of
it: the network's flow for the undeformed pair, carried through the known deformation, takes the place of the truth.
`still` is the mean length of that flow. Where that flow was dropped as too short, `own` is a little too low.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import VAL_SEED, Pair, PairDataset
from data.simulated_heads import LabelledHeads
from data.simulated_pairs import CONTRASTS, SimulatedPairs
from data.splits import GROUP_PATTERN, add_group_pattern, find_table, patients_of
from data.table import MODALITIES, with_names
from evaluation.intervals import removed_interval, removed_share
from models.checkpoint import Checkpoint, load_checkpoint
from models.edarfusion import EDARFusion
from utils.arguments import OneLineParser, add_checkpoint, add_device, positive, print_anywhere
from utils.command import run_command
from utils.device import choose_device
from utils.files import check_inputs_stay
from utils.geometry.foreground import foreground, masked_means
from utils.geometry.warp import compose, resize_flow
from utils.maps import jacobian_determinant
from utils.messages import markdown_table
from utils.tables import write_table

SUMMARY_COLUMNS = ("pairs", "zero flow", "left", "removed", "95 %", "own", "still", "better", "disagreement", "folding")


@torch.no_grad()
def score_pairs(
    model: EDARFusion, pairs: Dataset[Pair], device: torch.device, *, passes: int, average: bool, batch: int = 8
) -> pd.DataFrame:
    """Align pairs as they are deformed and as they lie.

    Args:
        model: in evaluation mode.
        pairs: with fixed deformations.
        device: where the model is.
        passes, average: as in `EDARFusion.forward`.
        batch: pairs at once.

    Returns:
        A row a pair: endpoint errors (px) `error` and `zero`; `own`, the error against the network's own answer to
        the pair as it lies, and `own_zero`, that of this answer itself; `still` (px); `disagreement` (px); `folding`
        (share of pixels).
    """
    rows = []
    for pair in DataLoader(pairs, batch):
        pair = pair.to(device)
        size = tuple(pair.fixed.shape[2:])
        truth, head = resize_flow(pair.flow, size), foreground(pair.moving_aligned, size)
        output = model(pair.fixed, pair.moving, passes, average)
        still = model(pair.fixed, pair.moving_aligned, passes, average).flow
        carried = compose(truth, still)

        def length(flow: Tensor, head: Tensor = head) -> Tensor:
            return masked_means(flow.norm(dim=1, keepdim=True), head)

        values = {
            "error": length(output.flow - truth),
            "zero": length(truth),
            "own": length(output.flow - carried),
            "own_zero": length(carried - still),
            "still": length(still),
            "disagreement": output.disagreement,
            "folding": (jacobian_determinant(output.flow) <= 0).float().mean(dim=(1, 2, 3)),
        }
        rows.append(pd.DataFrame({name: value.cpu().numpy() for name, value in values.items()}))
    return pd.concat(rows, ignore_index=True)


def summarise_scores(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Summarise rows of `score_pairs`, with a column group, to the columns of `SUMMARY_COLUMNS`."""
    rows = {}
    for key, part in scores.groupby(by, sort=False):
        low, high = removed_interval(part["error"], part["zero"], part["group"])
        rows[key if len(by) > 1 else key[0]] = {
            "pairs": len(part),
            "zero flow": part["zero"].mean(),
            "left": part["error"].mean(),
            "removed": removed_share(part["error"], part["zero"]),
            "95 %": (low, high),
            "own": removed_share(part["own"], part["own_zero"]),
            "still": part["still"].mean(),
            "better": (part["error"] < part["zero"]).mean(),
            "disagreement": part["disagreement"].mean(),
            "folding": part["folding"].mean(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(SUMMARY_COLUMNS))
    table.index.names = by
    return table


def scores_report(table: pd.DataFrame) -> str:
    """Format the table of `summarise_scores`: px with two digits, shares in per cent."""
    lines = []
    for key, row in zip(table.index, table.to_dict("records"), strict=True):
        low, high = row["95 %"]
        lines.append([
            *(key if isinstance(key, tuple) else (key,)), str(row["pairs"]),
            *(f"{row[name]:.2f}" for name in ("zero flow", "left")), f"{row['removed']:.0%}",
            "" if pd.isna(low) else f"{low:.0%} to {high:.0%}", f"{row['own']:.0%}", f"{row['still']:.2f}",
            f"{row['better']:.0%}", f"{row['disagreement']:.2f}", f"{row['folding']:.2%}",
        ])  # fmt: skip
    return markdown_table([*table.index.names, *SUMMARY_COLUMNS], lines)


def simulated_sets(folder: str, count: int) -> dict[str, SimulatedPairs]:
    """Make the simulated sets: `count` pairs of each contrast on the heads of the split test."""
    heads = LabelledHeads(folder, "test")
    return {contrast: SimulatedPairs(heads, contrast, count) for contrast in CONTRASTS}


def real_sets(
    table: pd.DataFrame, root: str, group_pattern: str = GROUP_PATTERN
) -> dict[str, tuple[PairDataset, list[str]]]:
    """List the pairs of each modality with validation's deformations, and the patient of each.

    Args:
        table: of `find_table`.
        root: folder that its paths start from.
        group_pattern: of names, which tells the patients where the table does not.

    Raises:
        DataError: the pattern is no regular expression.
    """
    sets = {}
    for modality in [name for name in MODALITIES if name in set(table["modality"])]:
        rows = table[table["modality"] == modality].reset_index(drop=True)
        sets[modality] = PairDataset(rows, root, seed=VAL_SEED), patients_of(with_names(rows), group_pattern)
    return sets


def load_network(options: argparse.Namespace) -> tuple[Checkpoint, torch.device]:
    """Load the checkpoint of the options of `add_options` to their device; no result may be written over an input.

    Raises:
        InputError: --output names an input, or the checkpoint or the device cannot be used.
    """
    if options.output:
        check_inputs_stay(filter(None, (options.checkpoint, options.csv)), [options.output], "--output FILE")
    device = choose_device(options.device)
    return load_checkpoint(options.checkpoint, device=device), device


def validation_sets(options: argparse.Namespace) -> dict[str, tuple[PairDataset, list[str]]]:
    """List the pairs of the split val below --root, as `real_sets` does.

    Raises:
        InputError: as `find_table` and `real_sets`.
    """
    table = find_table(options.root, csv=options.csv, split="val", group_pattern=options.group_pattern)
    return real_sets(table, options.root, options.group_pattern)


def write_rows(table: pd.DataFrame, path: Path | None) -> None:
    """Write a table as CSV where --output names a file; after printing, so that no figures are lost if it fails."""
    if path:
        write_table(path, table)


def run(options: argparse.Namespace) -> None:
    """Score the network of the options on their images, and print and write the figures.

    Raises:
        InputError: a file or the device cannot be used.
    """
    checkpoint, device = load_network(options)
    settings, parts = checkpoint.inference(), []
    if options.heads:
        for contrast, pairs in simulated_sets(options.heads, options.pairs).items():
            scores = score_pairs(checkpoint.model, pairs, device, **settings)
            parts.append(scores.assign(images=f"simulated {contrast}", group=pairs.groups))
    if options.root:
        for modality, (pairs, groups) in validation_sets(options).items():
            scores = score_pairs(checkpoint.model, pairs, device, **settings)
            parts.append(scores.assign(images=modality, group=groups))
    scores = pd.concat(parts, ignore_index=True)
    print(scores_report(summarise_scores(scores, ["images"])))
    simulated = scores[scores["images"].str.startswith("simulated")]
    if not simulated.empty:
        print("\n" + scores_report(summarise_scores(simulated, ["images", "group"])))
    write_rows(scores, options.output)


def add_options(parser: OneLineParser, row: str) -> None:
    """Add --csv, --group-pattern, --checkpoint, --output and --device. `row` is what a row of the output stands for."""
    parser.add_argument("--csv", metavar="FILE",
                        help="table of the pairs below --root with another split, such as that of a fold")
    add_group_pattern(parser)
    add_checkpoint(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"CSV table to write, with a row for each {row}")
    add_device(parser)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.unseen``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.unseen", description=__doc__)
    parser.add_argument("--heads", metavar="DIR",
                        help="folder of labelled heads; pairs are simulated on those of the split test "
                             "(python -m tools.make_heads)")
    parser.add_argument("--pairs", type=positive, default=48, metavar="N",
                        help="number of simulated pairs of each contrast (default: %(default)s)")
    parser.add_argument("--root", metavar="DIR",
                        help="folder of aligned pairs in the layout of the training data, whose split val is scored")
    add_options(parser, "pair")
    options = parser.parse_args(arguments)
    if not (options.heads or options.root):
        parser.error("expected --heads or --root, found neither")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
