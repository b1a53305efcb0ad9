"""Train and check the map of expected errors of a network whose registration is finished.

    python -m tools.expected_error fit CHECKPOINT TARGET --root HARVARD --heads HEADS
    python -m tools.expected_error check CHECKPOINT --root HARVARD --heads HEADS

`fit` trains on mistakes that the registration makes on the validation pairs of HARVARD and on heads simulated anew; all
other weights stay as they are. `check` reports on pairs with deformations of the benchmark's kind: coverage of the 90 %
bound, rank correlations of expected and true error, areas of sparsification, and the error of the surest places.
"""

import argparse
import sys

import torch

from data.dataset import PairDataset
from data.simulated_heads import LabelledHeads
from data.splits import add_group_pattern, find_table
from data.table import SPLITS, split_name
from models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from tools.unseen import real_sets, simulated_sets
from training.expected_error import Mistakes, calibration, collect, fit, risk_coverage
from utils.arguments import OneLineParser, add_device, natural, positive, print_anywhere
from utils.command import run_command
from utils.device import choose_device
from utils.files import InputError, check_inputs_stay
from utils.messages import markdown_table

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
    mistakes = collect(model, pairs, device, passes=checkpoint.inference()["passes"], draws=options.pairs)
    loss = fit(model.expected_error.cpu(), mistakes, seed=options.seed)
    training = checkpoint.training | {"expected_error": {"pairs": options.pairs, "seed": options.seed, "loss": loss}}
    save_checkpoint(
        options.target, model.cpu().half(), modality=checkpoint.modality, training=training, metrics=checkpoint.metrics
    )
    bound = model.expected_error.bound_ratio.item()
    print(f"{options.target}: loss {loss:.3f}, bound at {bound:.2f} times the expected error")


def check_command(options: argparse.Namespace, checkpoint: Checkpoint, device: torch.device) -> None:
    """Print the calibration on each kind of images as Markdown.

    Raises:
        InputError: pairs or heads cannot be used, or the network expects no errors.
    """
    if checkpoint.model.expected_error is None:
        raise InputError(f"{options.checkpoint}: expected a network with a map of expected errors, found one without")
    sets = {}
    if options.root:
        table = find_table(options.root, csv=options.csv, split=options.split, group_pattern=options.group_pattern)
        sets |= {name: pairs for name, (pairs, _) in real_sets(table, options.root).items()}
    if options.heads:
        sets |= {f"simulated {name}": pairs for name, pairs in simulated_sets(options.heads, options.pairs).items()}
    passes = checkpoint.inference()["passes"]
    mistakes_of = {name: collect(checkpoint.model, pairs, device, passes=passes) for name, pairs in sets.items()}
    mistakes_of["all"] = Mistakes(*map(torch.cat, zip(*mistakes_of.values(), strict=True)))
    network = checkpoint.model.expected_error.cpu()
    header = ["images", "pairs", "error, px", "expected, px", "coverage", "within pairs", "over pairs",
              "sparsification", "by disagreement", *(f"surest {share:.0%}" for share in SHARES)]  # fmt: skip
    lines = []
    for name, mistakes in mistakes_of.items():
        c = calibration(network, mistakes)
        lines.append([
            name, str(c.pairs), f"{c.error:.2f}", f"{c.expected:.2f}", f"{c.coverage:.1%}", f"{c.within:.2f}",
            f"{c.over:.2f}", f"{c.sparsification:.2f}", f"{c.by_disagreement:.2f}",
            *(f"{risk:.2f}" for risk in risk_coverage(network, mistakes, SHARES)),
        ])  # fmt: skip
    print(markdown_table(header, lines))


def run(options: argparse.Namespace) -> None:
    """Run the sub-command of the options.

    Raises:
        InputError: as `fit_command` and `check_command`, or the checkpoint or device cannot be used.
    """
    if options.command == "fit":
        check_inputs_stay([options.checkpoint], [options.target], "another TARGET")
    device = choose_device(options.device)
    options.work(options, load_checkpoint(options.checkpoint, device=device), device)


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.expected_error``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.expected_error", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_fit(commands.add_parser("fit", help="train the part and write the checkpoint with it"))
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
                        help="number of pairs to draw and register (default: %(default)s)")
    _add_images(parser, root_required=True)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(work=check_command)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint that fit has written")
    parser.add_argument("--pairs", type=positive, default=48, metavar="N",
                        help="number of simulated pairs of each contrast (default: %(default)s)")
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
