"""Train and score a network on folds by patient: every patient is validated on once.

    python -m tools.crossvalidate --root HARVARD --output FOLDS \\
        -- --preset fast --minutes 60
    python -m tools.crossvalidate --root HARVARD --output FOLDS --tables  # CSV alone

What follows `--` goes to `EDARFusion_train.py`, once a fold. A fold whose run was broken off is resumed; one that has
ended is only scored. `scores.csv` in FOLDS has a row a pair. `data/folds.csv` holds the folds of the Harvard pairs.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import pandas as pd

from data.folds import FOLDS, make_folds, read_folds, split_by_fold
from data.splits import add_group_pattern, find_table
from models.checkpoint import load_checkpoint
from tools.unseen import real_sets, score_pairs, scores_report, summarise_scores
from utils.arguments import OneLineParser, add_device, positive, print_anywhere
from utils.command import run_command
from utils.device import choose_device
from utils.files import FileError
from utils.messages import counted
from utils.tables import write_table

TRAIN = Path(__file__).resolve().parents[1] / "EDARFusion_train.py"


def train_fold(table: Path, root: str, folder: Path, options: list[str]) -> None:
    """Train one fold in `folder`, or go on with it.

    Raises:
        FileError: the training ended with an error.
    """
    arguments = ["--csv", str(table), "--root", root, "--output", str(folder), "--stage", "registration", *options]
    if (folder / "last.safetensors").exists():
        arguments = ["--resume", str(folder)]
    command = [sys.executable, str(TRAIN), *arguments]
    if (status := subprocess.run(command, check=False).returncode) != 0:
        raise FileError.at(folder, "a finished training", f"exit status {status}")


def run(options: argparse.Namespace) -> None:
    """Write the tables of the folds, train on each and score it.

    Raises:
        InputError: the pairs or folds cannot be used, or a training failed.
    """
    pairs = find_table(options.root, group_pattern=options.group_pattern)
    folds = make_folds(pairs, options.draw) if options.draw else read_folds(options.folds or FOLDS)
    numbers = options.only or sorted(set(folds["fold"]))
    for number in numbers:
        table = split_by_fold(pairs, folds, number)
        write_table(options.output / f"fold{number}.csv", table)
    if options.tables:
        print(f"Wrote {counted(len(numbers), 'table')} to {options.output}")
        return
    device, parts = choose_device(options.device), []
    for number in numbers:
        folder = options.output / f"fold{number}"
        train_fold(options.output / f"fold{number}.csv", options.root, folder, options.train)
        model = load_checkpoint(folder / "last.safetensors", device=device).model
        table = split_by_fold(pairs, folds, number)
        val = table[table["split"] == "val"]
        for modality, (dataset, groups) in real_sets(val, options.root).items():
            scores = score_pairs(model, dataset, device, passes=1, average=True)
            parts.append(scores.assign(images=modality, group=groups, fold=number))
    scores = pd.concat(parts, ignore_index=True)
    write_table(options.output / "scores.csv", scores)
    print(scores_report(summarise_scores(scores, ["images"])))


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.crossvalidate``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.crossvalidate", description=__doc__)
    parser.add_argument("--root", required=True, metavar="DIR",
                        help="folder of aligned pairs in the layout of the training data")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR",
                        help="folder for the tables, the runs and the scores")
    parser.add_argument("--folds", metavar="FILE",
                        help="table that says which fold a pair is in, by modality and name (default: data/folds.csv, "
                             "the folds of the Harvard pairs)")
    parser.add_argument("--draw", type=positive, metavar="N",
                        help="divide the patients of other pairs among N folds at random instead")
    parser.add_argument("--only", type=positive, nargs="+", metavar="FOLD",
                        help="numbers of the folds to train and score (default: all)")
    parser.add_argument("--tables", action="store_true", help="only write the tables FOLDS/foldN.csv, train nothing")
    add_device(parser)
    add_group_pattern(parser)
    parser.add_argument("train", nargs="*", metavar="OPTION",
                        help="options of EDARFusion_train.py, after --, for every fold")
    options = parser.parse_args(arguments)
    if options.folds and options.draw:
        parser.error("expected either --folds or --draw, found both")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
