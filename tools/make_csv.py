"""Write a table of the aligned pairs in a folder, split by patient.

    python -m tools.make_csv --root DATA --modality all --output all.csv
    python -m tools.make_csv --root DATA --modality all --draw --ratio 0.8 --seed 0
"""

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
    # Run as a file instead of with -m: the repository is not on the path.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.splits import add_group_pattern, make_table, shared_patients
from data.table import MODALITIES, modality_name
from utils.arguments import OneLineParser, natural, print_anywhere
from utils.command import run_command
from utils.files import FileError
from utils.messages import counted
from utils.tables import write_table


def run(options: argparse.Namespace) -> None:
    """Write the table of the options and print how many pairs and patients each split has.

    Raises:
        FileError: the table is there already, or as `make_table`.
    """
    output = options.output or Path(f"{options.modality}.csv")
    if output.exists():
        # A table may have been changed by hand, and runs may depend on it.
        raise FileError.at(output, "a table that is not there yet (--output FILE)", "a file")
    table = make_table(
        options.root, options.modality, ratio=options.ratio, seed=options.seed,
        group_pattern=options.group_pattern, split_csv=None if options.draw else options.split_csv or "split.csv",
        draw_others=options.split_csv is None,
    )  # fmt: skip
    write_table(output, table)
    print(f"Wrote {output}")
    for (modality, split), part in table.groupby(["modality", "split"]):
        print(f"  {modality:5} {split:5} {len(part):4} pairs of {part['group'].nunique()} patients")
    if shared := shared_patients(table):
        print(f"  {counted(shared, 'patient')} with slices in both train and val: figures on val flatter")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.make_csv``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.make_csv", description=__doc__)
    parser.add_argument("--root", metavar="DIR", type=Path, required=True,
                        help="folder that holds CT-MRI, PET-MRI or SPECT-MRI")
    parser.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"), required=True,
                        help="modality of the pairs to list")
    parser.add_argument("--output", metavar="FILE", type=Path,
                        help="table to write (default: MODALITY.csv in the current folder)")
    parser.add_argument("--split-csv", metavar="FILE",
                        help="file with the columns split and name to take the split from, in the modality's folder "
                             "or a path (default: split.csv where a folder has one; other splits are drawn)")
    parser.add_argument("--draw", action="store_true", help="draw the split and ignore every split.csv")
    parser.add_argument("--ratio", type=float, default=0.8, metavar="SHARE",
                        help="share of slices for training in a drawn split (default: %(default)s)")
    parser.add_argument("--seed", type=natural, default=0, metavar="N",
                        help="seed of a drawn split (default: %(default)s)")
    add_group_pattern(parser)
    options = parser.parse_args(arguments)
    if options.draw and options.split_csv:
        parser.error("expected either --draw or --split-csv, found both")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
