"""Compare the output of several methods on the same pairs, metric by metric.

``python -m tools.compare --help`` scores folders of fused and aligned images, prints a table, and writes, per modality,
a Markdown report, the same figures as CSV, the scores of every pair, and a picture.
"""

import argparse
import re
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from data.splits import add_group_pattern, patients_of
from evaluation.comparison import summarise, to_markdown
from evaluation.comparison_views import figure_comparison, to_table
from evaluation.figures import save_figure
from evaluation.scoring import score_folders
from utils.arguments import OneLineParser, positive, print_anywhere
from utils.files import FileError, write_bytes

BEFORE = "before alignment"
"""Name under which the moving images as they came are listed among the systems."""


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
        Tables for :func:`summarise`; ``BEFORE`` is listed last where ``moving`` is given.

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
        before = score_folders(workers=workers, description=BEFORE, fixed=fixed, moving=moving, label=label)
        scores[BEFORE] = before.set_index("name").rename(
            columns=lambda metric: metric.removesuffix("_before")
        )
    return scores


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command to its parser."""
    parser.add_argument("--modality", metavar="NAME", required=True, type=_file_name, help="CT, PET or SPECT")
    parser.add_argument("--fixed", metavar="DIR", required=True, help="fixed images (MRI)")
    parser.add_argument("--label", metavar="DIR", required=True, help="truly aligned moving images")
    parser.add_argument("--moving", metavar="DIR", help="moving images before alignment")
    parser.add_argument("--grey-label", metavar="DIR", help="truth for the registration metrics, if not --label")
    parser.add_argument("--grey-moving", metavar="DIR", help="moving images in the grey of --grey-label")
    parser.add_argument("--system", dest="systems", metavar=("NAME", "FUSED_DIR", "ALIGNED_DIR"), nargs=3,
                        action="append", required=True,
                        help="a method and its output; - for ALIGNED_DIR if it has none; repeat for each method")
    parser.add_argument("--ours", metavar="NAME", required=True, help="the system to test the others against")
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="folder to write to")
    add_group_pattern(parser)
    parser.add_argument("--workers", metavar="N", type=positive, help="processes (default: one a core)")


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Exit with a message if options do not go together."""
    names = [name for name, _, _ in options.systems]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--system: expected a name for each system, found {name!r} more than once")
    if BEFORE in names:
        parser.error(f"--system: {BEFORE!r} is the name of the moving images")
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
    write_bytes(report, to_markdown(summary, options.ours, title).encode())
    write_bytes(means, summary.to_csv(index=False, float_format="%.10g").encode())
    write_bytes(of_pairs, pairs.to_csv(index=False, float_format="%.10g").encode())
    save_figure(figure, figure_comparison(summary, options.ours))
    Console().print(to_table(summary, options.ours, title))
    return paths


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.compare``; return the exit status."""
    print_anywhere()
    parser = OneLineParser(
        prog="python -m tools.compare",
        description="Compare the output of several methods on the same pairs. Images are matched by file name; colour "
        "is scored on BT.601 luma. Prints a table and writes MODALITY.md, MODALITY.csv, MODALITY_pairs.csv and "
        "MODALITY.png.",
        epilog="Published RMSE of PET and SPECT refers to grey files made by the benchmark authors' own "
        "formula: name those with --grey-moving and --grey-label, and the colour truth, for the fusion "
        "metrics, with --label.",
    )
    add_options(parser)
    options = parser.parse_args(arguments)
    check_options(parser, options)
    try:
        scores = compare_folders(
            {name: (fused, None if aligned == "-" else aligned) for name, fused, aligned in options.systems},
            fixed=options.fixed,
            reference=options.label,
            label=options.grey_label or options.label,
            moving=options.grey_moving or options.moving,
            workers=options.workers,
        )
        paths = write_comparison(scores, options)
    except FileError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {', '.join(map(str, paths))}")
    return 0


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[\w-]+", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, - and _, found {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
