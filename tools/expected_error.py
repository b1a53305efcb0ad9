"""Train and check the map of expected errors of a network whose registration is finished.

    python -m tools.expected_error fit CHECKPOINT TARGET \\
        --root HARVARD --heads HEADS
    python -m tools.expected_error calibrate CHECKPOINT TARGET \\
        --root HARVARD --folds FOLDS
    python -m tools.expected_error check CHECKPOINT --root HARVARD --heads HEADS

`fit` trains on mistakes that the registration makes on the validation pairs of HARVARD and on heads simulated anew; all
other weights stay as they are. `calibrate` brings a fitted map to the scale of patients never seen. It adapts two
numbers and the bound to the mistakes that the networks of FOLDS, the folder of `tools.crossvalidate`, make on patients
left out, and prints the calibration on each fold when only the others were used. `check` reports coverage of the 90 %
bound, rank correlations of expected and true error, areas of sparsification, and the error of the surest places.

All three take each pair twice: with its whole deformation, and with a share of it. So pairs that lie nearly right
count, too. The bound is set on whole deformations.
"""

import argparse
import sys
from copy import deepcopy
from pathlib import Path

import torch
from torch.utils.data import Dataset

from data.dataset import Pair, PairDataset
from data.partly_aligned import PartlyAligned
from data.simulated_heads import LabelledHeads
from data.splits import add_group_pattern, find_table
from data.table import SPLITS, split_name
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from models.expected_error import ExpectedError
from tools.unseen import real_sets, simulated_sets
from training.expected_error import Mistakes, calibration, collect, fit, joined, rescale, risk_coverage, set_bound
from utils.arguments import OneLineParser, add_device, natural, positive, print_anywhere
from utils.command import run_command
from utils.device import choose_device
from utils.files import InputError, check_inputs_stay
from utils.messages import counted, markdown_table

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the places, the surest first, whose mean error `check` reports."""


def with_expectation(model: EDARFusion) -> EDARFusion:
    """Add the part that predicts errors to a network, unless it has one."""
    if model.expected_error is not None:
        return model
    larger = EDARFusion(**model.arguments | {"expected_error": True})
    larger.load_state_dict(model.state_dict(), strict=False)
    return larger.eval()


def fit_command(options: argparse.Namespace, checkpoint: Checkpoint, device: torch.device) -> None:
    """Fit, and write the checkpoint with the new part.

    Raises:
        InputError: pairs or heads cannot be used, or the target cannot be written.
    """
    torch.manual_seed(options.seed)
    model = with_expectation(checkpoint.model).to(device)
    table = find_table(options.root, csv=options.csv, split=options.split, group_pattern=options.group_pattern)
    pairs = PairDataset(
        table.sample(frac=1, random_state=options.seed, ignore_index=True), options.root, seed=options.seed,
        augment=True, wide=0.2, simulated=0.5, heads=LabelledHeads(options.heads) if options.heads else None,
    )  # fmt: skip
    mistakes = both_kinds(model, pairs, device, passes=checkpoint.inference()["passes"], draws=options.pairs)
    loss = fit(model.expected_error.cpu(), joined(mistakes), seed=options.seed)
    set_bound(model.expected_error, mistakes[0])  # in place of that of both kinds
    save(options.target, model, checkpoint, {"pairs": options.pairs, "seed": options.seed, "loss": loss})


def both_kinds(
    model: EDARFusion, pairs: Dataset[Pair], device: torch.device, *, passes: int, draws: int | None = None
) -> list[Mistakes]:
    """Collect mistakes on pairs as they are deformed, and on the same pairs with a share of that."""
    return [collect(model, kind, device, passes=passes, draws=draws) for kind in (pairs, PartlyAligned(pairs))]


def save(target: str, model: EDARFusion, checkpoint: Checkpoint, notes: dict[str, float]) -> None:
    """Write a model with its new part in place of a checkpoint's, and say where the bound lies."""
    training = checkpoint.training | {"expected_error": checkpoint.training.get("expected_error", {}) | notes}
    save_checkpoint(
        target, model.cpu().half(), modality=checkpoint.modality, training=training, metrics=checkpoint.metrics
    )
    bound = model.expected_error.bound_ratio.item()
    print(f"{target}: loss {notes['loss']:.3f}, bound at {bound:.2f} times the expected error")


def calibrate_command(options: argparse.Namespace, checkpoint: Checkpoint, device: torch.device) -> None:
    """Adapt the scale of the map to patients never seen, and write the checkpoint with it.

    Raises:
        InputError: pairs or folds cannot be used, the network expects no errors, or the target cannot be written.
    """
    check_expectation(checkpoint, options.checkpoint)
    model = checkpoint.model.cpu()
    parts = mistakes_of_folds(options, model, device)
    checks = []
    for name, mistakes in parts.items():
        network = deepcopy(model.expected_error)
        adapt(network, [kinds for other, kinds in parts.items() if other != name])
        checks += lines_of(name, network, mistakes)
    print(calibration_table(checks))
    loss = adapt(model.expected_error, list(parts.values()))
    save(options.target, model, checkpoint, {"calibration_pairs": options.pairs, "loss": loss})


def adapt(network: ExpectedError, parts: list[list[Mistakes]]) -> float:
    """Bring a network to the scale of mistakes of `both_kinds` on several sets of pairs, in place; return the loss.

    The bound holds for pairs as far apart as they were deformed. It is cautious where less is left.
    """
    loss = rescale(network, joined([kind for kinds in parts for kind in kinds]))
    set_bound(network, joined([whole for whole, _ in parts]))
    return loss


def mistakes_of_folds(
    options: argparse.Namespace, model: EDARFusion, device: torch.device
) -> dict[str, list[Mistakes]]:
    """Collect the mistakes that the networks of folds make on the patients left out, by the name of the fold.

    Raises:
        InputError: pairs, tables or networks cannot be used, or a network has another preset than `model`.
    """
    tables = sorted(options.folds.glob("fold*.csv"))
    if len(tables) < 2:
        raise InputError(f"{options.folds}: expected fold1.csv, fold2.csv, ... of tools.crossvalidate, found "
                         f"{counted(len(tables), 'table')}")  # fmt: skip
    parts = {}
    for csv in tables:
        path = options.folds / csv.stem / "last.safetensors"
        fold = load_checkpoint(path, device=device)
        presets = [network.arguments["preset"] for network in (model, fold.model)]
        if presets[0] != presets[1]:
            raise InputError(f"{path}: expected preset {presets[0]}, found {presets[1]}")
        table = find_table(options.root, csv=csv, split="val", group_pattern=options.group_pattern)
        table = table.sample(frac=1, random_state=options.seed)
        # Equally many of each modality, the first slices of a random order.
        order = table.groupby("modality").cumcount().sort_values(kind="stable").index
        pairs = PairDataset(table.loc[order].reset_index(drop=True), options.root, seed=options.seed)
        draws = min(len(pairs), max(1, options.pairs // len(tables)))
        network = with_expectation(fold.model).to(device)
        parts[csv.stem] = both_kinds(network, pairs, device, passes=fold.inference()["passes"], draws=draws)
    return parts


def check_expectation(checkpoint: Checkpoint, path: str) -> None:
    """Check that a network has a map of expected errors.

    Raises:
        InputError: it has none.
    """
    if checkpoint.model.expected_error is None:
        raise InputError(f"{path}: expected a network with a map of expected errors, found one without")


def check_command(options: argparse.Namespace, checkpoint: Checkpoint, device: torch.device) -> None:
    """Print the calibration on each kind of images as Markdown.

    Raises:
        InputError: pairs or heads cannot be used, or the network expects no errors.
    """
    check_expectation(checkpoint, options.checkpoint)
    sets = {}
    if options.root:
        table = find_table(options.root, csv=options.csv, split=options.split, group_pattern=options.group_pattern)
        sets |= {name: pairs for name, (pairs, _) in real_sets(table, options.root).items()}
    if options.heads:
        sets |= {f"simulated {name}": pairs for name, pairs in simulated_sets(options.heads, options.pairs).items()}
    passes = checkpoint.inference()["passes"]
    parts = {name: both_kinds(checkpoint.model, pairs, device, passes=passes) for name, pairs in sets.items()}
    parts["all"] = [joined(list(kind)) for kind in zip(*parts.values(), strict=True)]
    network = checkpoint.model.expected_error.cpu()
    print(calibration_table([line for name, kinds in parts.items() for line in lines_of(name, network, kinds)]))


def lines_of(name: str, network: ExpectedError, kinds: list[Mistakes]) -> list[tuple[str, ExpectedError, Mistakes]]:
    """Name the lines of a table for mistakes of `both_kinds`, and for all of them together."""
    names = f"{name}, whole", f"{name}, a share", f"{name}, both"
    return [(line, network, part) for line, part in zip(names, (*kinds, joined(kinds)), strict=True)]


def calibration_table(checks: list[tuple[str, ExpectedError, Mistakes]]) -> str:
    """Format the calibration of networks on mistakes as Markdown, a line each."""
    header = ["images", "pairs", "error, px", "expected, px", "coverage", "within pairs", "over pairs",
              "sparsification", "by disagreement", *(f"surest {share:.0%}" for share in SHARES)]  # fmt: skip
    lines = []
    for name, network, mistakes in checks:
        figures = calibration(network, mistakes)
        lines.append([
            name, str(figures.pairs), f"{figures.error:.2f}", f"{figures.expected:.2f}", f"{figures.coverage:.1%}",
            f"{figures.within:.2f}", f"{figures.over:.2f}", f"{figures.sparsification:.2f}",
            f"{figures.by_disagreement:.2f}",
            *(f"{risk:.2f}" for risk in risk_coverage(network, mistakes, SHARES)),
        ])  # fmt: skip
    return markdown_table(header, lines)


def run(options: argparse.Namespace) -> None:
    """Run the sub-command of the options.

    Raises:
        InputError: as `fit_command` and `check_command`, or the checkpoint or device cannot be used.
    """
    if options.command != "check":
        check_inputs_stay([options.checkpoint], [options.target], "another TARGET")
    device = choose_device(options.device)
    options.work(options, load_checkpoint(options.checkpoint, device=device), device)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.expected_error``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.expected_error", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_fit(commands.add_parser("fit", help="train the part and write the checkpoint with it"))
    _add_calibrate(commands.add_parser("calibrate", help="adapt the part to patients never seen"))
    _add_check(commands.add_parser("check", help="print how well expected errors agree with true ones"))
    options = parser.parse_args(arguments)
    if options.command == "check" and not (options.root or options.heads):
        parser.error("expected --root or --heads, found neither")
    return run_command(parser.prog, run, options)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=fit_command)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint of a network with a trained registration")
    parser.add_argument("target", metavar="TARGET", help="checkpoint to write")
    parser.add_argument("--seed", type=natural, default=0, metavar="N",
                        help="seed of all random draws (default: %(default)s)")
    parser.add_argument("--pairs", type=positive, default=600, metavar="N",
                        help="number of pairs to draw; each is registered twice (default: %(default)s)")
    _add_images(parser, root_required=True)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=calibrate_command)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint that fit has written")
    parser.add_argument("target", metavar="TARGET", help="checkpoint to write")
    parser.add_argument("--root", metavar="DIR", required=True,
                        help="folder of aligned pairs in the layout of the training data")
    parser.add_argument("--folds", type=Path, metavar="DIR", required=True,
                        help="folder that tools.crossvalidate wrote, with networks of CHECKPOINT's preset")
    parser.add_argument("--seed", type=natural, default=0, metavar="N",
                        help="seed of all random draws (default: %(default)s)")
    parser.add_argument("--pairs", type=positive, default=216, metavar="N",
                        help="number of pairs of all folds together; each is registered twice (default: %(default)s)")
    add_group_pattern(parser)
    add_device(parser)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=check_command)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint that fit has written")
    parser.add_argument("--pairs", type=positive, default=48, metavar="N",
                        help="number of simulated pairs of each contrast; each is registered twice "
                             "(default: %(default)s)")
    _add_images(parser, root_required=False)


def _add_images(parser: argparse.ArgumentParser, root_required: bool) -> None:
    parser.add_argument("--root", metavar="DIR", required=root_required,
                        help="folder of aligned pairs in the layout of the training data")
    parser.add_argument("--csv", metavar="FILE", help="table of pairs with their split (python -m tools.make_csv)")
    parser.add_argument("--split", type=split_name, choices=SPLITS, default="val",
                        help="split of the pairs to take (default: %(default)s)")
    add_group_pattern(parser)
    parser.add_argument("--heads", metavar="DIR",
                        help="folder of labelled heads to simulate pairs on (python -m tools.make_heads)")
    add_device(parser)


if __name__ == "__main__":
    sys.exit(main())
