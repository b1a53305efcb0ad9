"""Compare the output of several methods on the same pairs of one modality, metric by metric.

    python -m tools.compare --modality CT --fixed MRI --label CT_label --moving CT \\
        --output comparison --ours mine \\
        --system mine results/CT/fused results/CT/aligned \\
        --system other OTHER/fused -

Images are matched by file name. Colour is scored on its luma (BT.601). Prints a table, and writes MODALITY.md (means
with 95 % intervals and tests), MODALITY.csv (the same figures), MODALITY_pairs.csv (every pair) and MODALITY.png (means
and intervals as a picture).

Published RMSE of PET and SPECT refers to grey files by a formula of the benchmark's authors. Name those files with
--grey-moving and --grey-label, and the truth in colour, for the fusion metrics, with --label.
"""

import argparse
import re
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from data.splits import add_group_pattern, patients_of
from evaluation.comparison import BEFORE_ALIGNMENT, comparison_report, summarise
from evaluation.comparison_views import figure_comparison, to_table
from evaluation.figures import save_figure
from evaluation.scoring import score_folders
from utils.arguments import OneLineParser, add_workers, print_anywhere
from utils.command import run_command
from utils.files import write_bytes
from utils.tables import write_table


def compare_folders(
    systems: dict[str, tuple[str | Path, str | Path | None]],
    *,
    fixed: str | Path,
    reference: str | Path,
    label: str | Path,
    moving: str | Path | None = None,
    workers: int | None = None,
) -> dict[str, pd.DataFrame]:
    """Score the output of several systems, and the moving images before alignment.

    Args:
        systems: name -> folder of fused images and folder of aligned images (None where there is none).
        fixed: folder of fixed images.
        reference: truly aligned second source, for the fusion metrics.
        label: truly aligned moving images, for the registration metrics; for PET and SPECT the grey ones.
        moving: moving images as they came, grey like ``label``.
        workers: processes, as for :func:`evaluation.scoring.score_folders`.

    Returns:
        Tables for :func:`summarise`; ``BEFORE_ALIGNMENT`` is listed last where ``moving`` is given.

    Raises:
        FileError: a folder or file cannot be used, or names do not pair.
    """
    scores = {}
    for name, (fused, aligned) in systems.items():
        folders = {"fixed": fixed, "reference": reference, "fused": fused}
        if aligned is not None:
            folders |= {"aligned": aligned, "label": label}
        scores[name] = score_folders(workers=workers, description=name, **folders).set_index("name")
    if moving is not None:
        before = score_folders(workers=workers, description=BEFORE_ALIGNMENT, fixed=fixed, moving=moving, label=label)
        scores[BEFORE_ALIGNMENT] = before.set_index("name").rename(
            columns=lambda metric: metric.removesuffix("_before")
        )
    return scores


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("--modality", metavar="NAME", required=True, type=_file_name,
                        help="CT, PET or SPECT: the name of the files to write")
    parser.add_argument("--fixed", metavar="DIR", required=True, help="folder of fixed images (MRI)")
    parser.add_argument("--label", metavar="DIR", required=True,
                        help="folder of truly aligned moving images, which everything is scored against")
    parser.add_argument("--moving", metavar="DIR",
                        help="folder of moving images before alignment, to be listed as well")
    parser.add_argument("--grey-label", metavar="DIR",
                        help="folder of the truth in other grey levels, for RMSE, SSIM and NCC (default: --label)")
    parser.add_argument("--grey-moving", metavar="DIR",
                        help="folder of moving images in the grey levels of --grey-label")
    parser.add_argument("--system", dest="systems", metavar=("NAME", "FUSED_DIR", "ALIGNED_DIR"), nargs=3,
                        action="append", required=True,
                        help="name of a method with its folders of fused and of aligned images; - in place of "
                             "ALIGNED_DIR if there are none; repeat for each method")
    parser.add_argument("--ours", metavar="NAME", required=True,
                        help="name of the method that the others are tested against")
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="folder to write to")
    add_group_pattern(parser)
    add_workers(parser)


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with a message if options do not go together."""
    names = [name for name, _, _ in options.systems]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--system: expected a name for each system, found {name!r} more than once")
    if BEFORE_ALIGNMENT in names:
        parser.error(f"--system: {BEFORE_ALIGNMENT!r} is the name of the moving images")
    if options.ours not in names:
        parser.error(f"--ours: expected one of {', '.join(names)}, found {options.ours!r}")
    # Moving images and label are compared by grey level: both in the one grey or both in the other.
    if bool(options.grey_moving) != bool(options.grey_label):
        parser.error("--grey-moving and --grey-label go together")


def write_comparison(scores: dict[str, pd.DataFrame], options: argparse.Namespace) -> list[Path]:
    """Write report, summary, scores of the pairs and figure, and print the table.

    Args:
        scores: of `compare_folders`.
        options: of the command.

    Returns:
        The files.

    Raises:
        FileError: a file cannot be written, or a name does not tell its patient.
    """
    names = pd.DataFrame({"name": scores[options.ours].index})
    patients = dict(zip(names["name"], patients_of(names, options.group_pattern), strict=True))
    summary = summarise(scores, options.ours, patients)
    pairs = pd.concat(scores, names=["system"]).reset_index()
    title = f"{options.modality}: {', '.join(name for name, _, _ in options.systems)}"
    paths = [options.output / f"{options.modality}{end}" for end in (".md", ".csv", "_pairs.csv", ".png")]
    report, means, of_pairs, figure = paths
    write_bytes(report, comparison_report(summary, options.ours, title).encode())
    write_table(means, summary, "%.10g")
    write_table(of_pairs, pairs, "%.10g")
    save_figure(figure, figure_comparison(summary, options.ours))
    Console().print(to_table(summary, options.ours, title))
    return paths


def run(options: argparse.Namespace) -> None:
    """Compare the systems of the options, print the table and write the files.

    Raises:
        FileError: as `compare_folders` and `write_comparison`.
    """
    scores = compare_folders(
        {name: (fused, None if aligned == "-" else aligned) for name, fused, aligned in options.systems},
        fixed=options.fixed,
        reference=options.label,
        label=options.grey_label or options.label,
        moving=options.grey_moving or options.moving,
        workers=options.workers,
    )
    paths = write_comparison(scores, options)
    print(f"Wrote {', '.join(map(str, paths))}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.compare``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.compare", description=__doc__)
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    return run_command(parser.prog, run, options)


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[\w-]+", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, - and _, found {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
