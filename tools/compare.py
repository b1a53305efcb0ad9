"""Compare the output of several methods on the same pairs, metric by metric.

``python -m tools.compare --help`` scores folders of fused and aligned images and writes, per modality, a
Markdown report, the same figures as CSV, and the scores of every pair.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from evaluation.metrics import LOWER_IS_BETTER
from evaluation.scoring import score_folders
from utils.arguments import OneLineParser, positive, print_anywhere
from utils.files import FileError, write_bytes
from utils.messages import markdown_table

BEFORE = "before alignment"
"""Name under which the moving images as they came are listed among the systems."""

_LEGEND = (
    "qabf Q^AB/F, qcv Q_CV, qvif VIFF, qs Piella's Q, qssim SSIM sum, qcb Q_CB, qy Q_Y, mi mutual "
    "information (bits), en entropy (bits), sd standard deviation, sf spatial frequency, ag average "
    "gradient, qssim_mean SSIM mean, qw Q_W, vif VIF sum, cc correlation, scd sum of correlations of "
    "differences, qabf_zliu Q^AB/F of another toolbox, mi_nats mutual information of stretched images "
    "(nats); aligned image against label: rmse (grey levels), ssim, ncc, mi_label mutual information "
    "(bits)."
)


def summarise(scores: dict[str, pd.DataFrame], ours: str) -> pd.DataFrame:
    """Means, spread and paired tests of several systems.

    Args:
        scores: system -> table with a row a pair, the pair's name as index and a column a metric. Systems may
            lack metrics, not pairs.
        ours: the system that the others are tested against.

    Returns:
        A row for each metric and system: ``metric``, ``better`` ("higher" or "lower"), ``system``, ``pairs``,
        ``mean``, ``std`` (sample standard deviation, NaN for one pair), ``p`` (two-sided Wilcoxon signed-rank
        test against ours, 1 where no pair differs) and ``ours_better`` (share of pairs, 0..1, in which ours
        is strictly better); the last two are NaN for ours and for metrics that ours lacks.

    Raises:
        ValueError: ours is not among the systems, or a system has other pairs.
    """
    if ours not in scores:
        raise ValueError(f"ours: expected one of {', '.join(scores)}, found {ours}")
    metrics = list(dict.fromkeys(metric for table in scores.values() for metric in table.columns))
    rows = []
    for metric in metrics:
        lower = metric in LOWER_IS_BETTER
        for system, table in scores.items():
            if set(table.index) != set(scores[ours].index):
                raise ValueError(f"{system}: expected the same pairs as {ours}, found others")
            if metric not in table:
                continue
            values = table[metric]
            p = share = np.nan
            if system != ours and metric in scores[ours]:
                gain = (scores[ours][metric] - values) * (-1 if lower else 1)
                p = stats.wilcoxon(gain).pvalue if gain.any() else 1.0
                share = (gain > 0).mean()
            rows.append(
                {
                    "metric": metric,
                    "better": "lower" if lower else "higher",
                    "system": system,
                    "pairs": len(values),
                    "mean": values.mean(),
                    "std": values.std(),
                    "p": p,
                    "ours_better": share,
                }
            )
    return pd.DataFrame(rows)


def to_markdown(summary: pd.DataFrame, ours: str, title: str) -> str:
    """The tables of a report in Markdown.

    Args:
        summary: what :func:`summarise` returned.
        ours: the system that the others were tested against.
        title: heading of the report.

    Returns:
        A table of mean ± standard deviation, best mean in bold, and one of the tests against ours.
    """
    systems = list(dict.fromkeys(summary["system"]))
    others = [system for system in systems if system != ours]
    means, tests = [], []
    for metric, rows in summary.groupby("metric", sort=False):
        lower = rows["better"].iloc[0] == "lower"
        label = f"{metric} {'↓' if lower else '↑'}"
        best = rows["mean"].min() if lower else rows["mean"].max()
        by_system = rows.set_index("system")
        means.append([label, *(_mean_cell(by_system, system, best) for system in systems)])
        if by_system["p"].notna().any():
            tests.append([label, *(_test_cell(by_system, system) for system in others)])
    parts = [
        f"# {title}",
        f"{summary['pairs'].max()} pairs, mean ± standard deviation over pairs, best mean in bold. "
        "↑ higher is better, ↓ lower is better.",
        markdown_table(["metric", *systems], means),
    ]
    if tests:
        parts += [
            f"## {ours} against the others",
            "p of the two-sided paired Wilcoxon signed-rank test, and the share of pairs in which "
            f"{ours} is better.",
            markdown_table(["metric", *others], tests),
        ]
    return "\n\n".join([*parts, _LEGEND]) + "\n"


def _mean_cell(rows: pd.DataFrame, system: str, best: float) -> str:
    if system not in rows.index:
        return "–"
    mean, std = rows.loc[system, "mean"], rows.loc[system, "std"]
    digits = 1 if abs(mean) >= 100 else 2 if abs(mean) >= 10 else 3
    text = f"{mean:.{digits}f}" if np.isnan(std) else f"{mean:.{digits}f} ± {std:.{digits}f}"
    return f"**{text}**" if mean == best else text


def _test_cell(rows: pd.DataFrame, system: str) -> str:
    if system not in rows.index or np.isnan(rows.loc[system, "p"]):
        return "–"
    p = rows.loc[system, "p"]
    return f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'}, {rows.loc[system, 'ours_better']:.0%}"


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


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.compare``; return the exit status."""
    print_anywhere()
    parser = OneLineParser(
        prog="python -m tools.compare",
        description="Compare the output of several methods on the same pairs. Files pair by stem; colour "
        "is scored on BT.601 luma. Writes MODALITY.md, MODALITY.csv and MODALITY_pairs.csv.",
        epilog="Published RMSE of PET and SPECT refers to grey files made by the benchmark authors' own "
        "formula: name those with --grey-moving and --grey-label, and the colour truth, for the fusion "
        "metrics, with --label.",
    )
    parser.add_argument("--modality", metavar="NAME", required=True, type=_file_name, help="CT, PET or SPECT")
    parser.add_argument("--fixed", metavar="DIR", required=True, help="fixed images (MRI)")
    parser.add_argument("--label", metavar="DIR", required=True, help="truly aligned moving images")
    parser.add_argument("--moving", metavar="DIR", help="moving images before alignment")
    parser.add_argument(
        "--grey-label", metavar="DIR", help="truth for the registration metrics, if not --label"
    )
    parser.add_argument("--grey-moving", metavar="DIR", help="moving images in the grey of --grey-label")
    parser.add_argument(
        "--system",
        dest="systems",
        metavar=("NAME", "FUSED_DIR", "ALIGNED_DIR"),
        nargs=3,
        action="append",
        required=True,
        help="a method and its output; - for ALIGNED_DIR if it has none; repeat for each method",
    )
    parser.add_argument("--ours", metavar="NAME", required=True, help="the system to test the others against")
    parser.add_argument("--output", metavar="DIR", required=True, type=Path, help="folder to write to")
    parser.add_argument("--workers", metavar="N", type=positive, help="processes (default: one a core)")
    options = parser.parse_args(arguments)
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
    try:
        scores = compare_folders(
            {name: (fused, None if aligned == "-" else aligned) for name, fused, aligned in options.systems},
            fixed=options.fixed,
            reference=options.label,
            label=options.grey_label or options.label,
            moving=options.grey_moving or options.moving,
            workers=options.workers,
        )
        summary = summarise(scores, options.ours)
        pairs = pd.concat(scores, names=["system"]).reset_index()
        report = to_markdown(summary, options.ours, f"{options.modality}: {', '.join(names)}")
        written = {
            f"{options.modality}.md": report,
            f"{options.modality}.csv": summary.to_csv(index=False, float_format="%.10g"),
            f"{options.modality}_pairs.csv": pairs.to_csv(index=False, float_format="%.10g"),
        }
        for name, text in written.items():
            write_bytes(options.output / name, text.encode())
    except FileError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(report)
    print("written: " + ", ".join(str(options.output / name) for name in written))
    return 0


def _file_name(text: str) -> str:
    if not re.fullmatch(r"[\w-]+", text):
        raise argparse.ArgumentTypeError(f"expected letters, digits, - and _, found {text!r}")
    return text


if __name__ == "__main__":
    sys.exit(main())
