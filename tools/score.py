"""Score fused and aligned images of any method. Images are matched by file name, colour is scored on its luma (BT.601).

    python -m tools.score --fixed MRI --reference LABEL --fused FUSED --csv scores.csv
    python -m tools.score --fixed MRI --reference LABEL --fused FUSED \\
        --aligned ALIGNED --label LABEL --csv scores.csv
"""

import argparse
import sys
from pathlib import Path

from evaluation.scoring import score_folders, with_mean
from utils.arguments import OneLineParser, add_workers, print_anywhere
from utils.command import run_command
from utils.messages import counted
from utils.tables import write_table


def run(options: argparse.Namespace) -> None:
    """Score the images of the options, write the table and print its means.

    Raises:
        FileError: as `evaluation.scoring.score_folders`, or the table cannot be written.
    """
    roles = ("fixed", "reference", "fused", "aligned", "moving", "label")
    table = with_mean(score_folders(workers=options.workers, **{role: getattr(options, role) for role in roles}))
    write_table(options.csv, table, "%.10g")
    print(table.iloc[-1].drop("name").astype(float).to_string(float_format="%.4f"))
    print(f"Wrote {counted(len(table) - 1, 'pair')} to {options.csv}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.score``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.score", description=__doc__)
    parser.add_argument("--fixed", metavar="DIR", required=True, help="folder of fixed images (MRI)")
    parser.add_argument("--reference", metavar="DIR", required=True,
                        help="folder of the second source of the fusion: the truly aligned moving images if known")
    parser.add_argument("--fused", metavar="DIR", required=True, help="folder of fused images to score")
    parser.add_argument("--aligned", metavar="DIR", help="folder of aligned moving images to score against --label")
    parser.add_argument("--moving", metavar="DIR",
                        help="folder of moving images before alignment, scored in the columns *_before")
    parser.add_argument("--label", metavar="DIR", help="folder of truly aligned moving images")
    parser.add_argument("--csv", metavar="FILE", required=True, type=Path, help="table to write")
    add_workers(parser)
    options = parser.parse_args(arguments)
    registration = options.aligned or options.moving
    if bool(registration) != bool(options.label):
        parser.error("--label goes together with --aligned, --moving or both")
    return run_command(parser.prog, run, options)


if __name__ == "__main__":
    sys.exit(main())
