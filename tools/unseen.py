"""How well a network aligns heads that it was not trained on.

    python -m tools.unseen --heads HEADS                      # simulated on the heads of the split test
    python -m tools.unseen --root HARVARD --csv fold1.csv     # the validation pairs of a table

Endpoint errors are in px of 256, inside the head. `removed` is the share of zero flow's error that the estimate takes
away, with a 95 % interval by resampling patients. Labels of real pairs contain a misalignment of their own. `own` is
free of it: what the network finds on the pair as it lies, carried through the known deformation, is what it should find
on the deformed pair. `still` is the mean displacement that it finds where nothing was displaced.
"""

import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import VAL_SEED, Pair, PairDataset
from data.simulated_heads import LabelledHeads
from data.simulated_pairs import CONTRASTS, SimulatedPairs
from data.splits import add_group_pattern, find_table
from data.table import MODALITIES
from evaluation.intervals import removed_interval, removed_share
from models.checkpoint import load_checkpoint
from models.edarfusion import EDARFusion
from utils.arguments import DEFAULT_CHECKPOINT, OneLineParser, positive, print_anywhere
from utils.device import choose_device
from utils.files import InputError, write_bytes
from utils.geometry.foreground import foreground, masked_means
from utils.geometry.warp import compose, resize_flow
from utils.maps import jacobian_determinant
from utils.messages import markdown_table

COLUMNS = ("pairs", "zero flow", "left", "removed", "95 %", "own", "still", "better", "disagreement", "folding")


@torch.no_grad()
def score(
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


def summary(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Summarise rows of `score`, with a column group, to the columns of `COLUMNS`."""
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
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))
    table.index.names = by
    return table


def to_markdown(table: pd.DataFrame) -> str:
    """Format the table of `summary`: px with two digits, shares in per cent."""
    lines = []
    for key, row in zip(table.index, table.to_dict("records"), strict=True):
        low, high = row["95 %"]
        lines.append([
            *(key if isinstance(key, tuple) else (key,)), str(row["pairs"]),
            *(f"{row[name]:.2f}" for name in ("zero flow", "left")), f"{row['removed']:.0%}",
            "" if pd.isna(low) else f"{low:.0%} to {high:.0%}", f"{row['own']:.0%}", f"{row['still']:.2f}",
            f"{row['better']:.0%}", f"{row['disagreement']:.2f}", f"{row['folding']:.2%}",
        ])  # fmt: skip
    return markdown_table([*table.index.names, *COLUMNS], lines)


def simulated_sets(folder: str, count: int) -> dict[str, SimulatedPairs]:
    """Make the simulated sets: `count` pairs of each contrast on the heads of the split test."""
    heads = LabelledHeads(folder, "test")
    return {contrast: SimulatedPairs(heads, contrast, count) for contrast in CONTRASTS}


def real_sets(table: pd.DataFrame, root: str) -> dict[str, tuple[PairDataset, list[str]]]:
    """List the pairs of each modality with validation's deformations, and the patient of each."""
    sets = {}
    for modality in [name for name in MODALITIES if name in set(table["modality"])]:
        rows = table[table["modality"] == modality].reset_index(drop=True)
        groups = list(rows["group"]) if "group" in rows else [Path(path).stem for path in rows["fixed"]]
        sets[modality] = PairDataset(rows, root, seed=VAL_SEED), groups
    return sets


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.unseen``; return the exit status."""
    print_anywhere()
    parser = OneLineParser(prog="python -m tools.unseen", description=__doc__.partition("\n")[0])
    parser.add_argument("--heads", metavar="DIR", help="folder of labelled heads (python -m tools.make_heads)")
    parser.add_argument("--pairs", type=positive, default=48, help="simulated a contrast (default: %(default)s)")
    parser.add_argument("--root", metavar="DIR", help="folder of aligned pairs, whose split val is scored")
    parser.add_argument(
        "--csv", metavar="FILE", help="table of pairs below it, such as one of a fold"
    )
    add_group_pattern(parser)
    parser.add_argument("--checkpoint", metavar="FILE", default=DEFAULT_CHECKPOINT, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV file to write, a row a pair")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="default: %(default)s")
    options = parser.parse_args(arguments)
    if not (options.heads or options.root):
        parser.error("expected --heads or --root, found neither")
    try:
        device = choose_device(options.device)
        checkpoint = load_checkpoint(options.checkpoint, device=device)
        settings, parts = checkpoint.inference(), []
        if options.heads:
            for contrast, pairs in simulated_sets(options.heads, options.pairs).items():
                scores = score(checkpoint.model, pairs, device, **settings)
                parts.append(scores.assign(images=f"simulated {contrast}", group=pairs.groups))
        if options.root:
            table = find_table(options.root, csv=options.csv, split="val", group_pattern=options.group_pattern)
            for modality, (pairs, groups) in real_sets(table, options.root).items():
                scores = score(checkpoint.model, pairs, device, **settings)
                parts.append(scores.assign(images=modality, group=groups))
        scores = pd.concat(parts, ignore_index=True)
        if options.output:
            write_bytes(options.output, scores.to_csv(index=False, lineterminator="\n").encode())
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(to_markdown(summary(scores, ["images"])))
    simulated = scores[scores["images"].str.startswith("simulated")]
    if not simulated.empty:
        print("\n" + to_markdown(summary(simulated, ["images", "group"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
