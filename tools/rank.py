"""Rank the results of any systems on the same pairs, all scored from their files by one function.

    python -m tools.rank --csv BENCH/pairs.csv --output RANKING \\
        --results EDARFusion=results --results Mine=my_results

A folder of results holds, for each modality, MODALITY/fused, MODALITY/aligned (images) and MODALITY/flow (NAME.npy), as
the test command writes them; each of the three may be missing. Writes a Markdown report, the figures as CSV, the scores
of every pair, and for all modalities ranking.csv, ranking.md, ranking.html and error_against_time.png.

The table of pairs has a column label, and flow where endpoint errors are to be known. Where the truth for the
registration metrics is in other grey levels than the label, as in the unaligned benchmark of BSAFusion, the columns
grey_moving and grey_label name it.
"""

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data.splits import add_group_pattern
from data.table import FILES, MODALITIES, SPLITS, modality_name, split_name
from evaluation.comparison import BEFORE_ALIGNMENT, comparison_report, mean_with_interval, summarise
from evaluation.figures import save_figure
from evaluation.report.columns import METRICS
from evaluation.report.systems import SystemImages, figure_error_against_time, write_systems_page
from inference.systems import GREY_COLUMNS, outputs_of, read_pairs, results_checksum, score_systems
from utils.arguments import OneLineParser, add_workers, positive, print_anywhere
from utils.command import run_command
from utils.files import FileError, check_inputs_stay, write_bytes
from utils.messages import counted, markdown_table
from utils.tables import write_table

HEADLINE = ("epe", "rmse", "ssim", "folding", "qabf", "qvif", "qcv", "qcb", "seconds")
"""Columns of the short table; all others stand in the tables of each modality."""


def rank(summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Rank the systems in each modality.

    The order is that of the mean endpoint error where all systems give displacement fields, else that of the root mean
    square error to the truth.

    Args:
        summaries: modality -> what `evaluation.comparison.summarise` returns.

    Returns:
        Columns modality, rank (1 is the best, empty for a system without the measure), system, and the means with their
        intervals of `HEADLINE` and of the measures that are declared after them, as text.
    """
    rows = []
    for modality, summary in summaries.items():
        means = summary.pivot(index="system", columns="metric", values="mean")
        systems = list(dict.fromkeys(summary["system"]))
        by = "epe" if "epe" in means and means["epe"].notna().all() else "rmse"
        order = means[by].rank(method="min") if by in means else pd.Series(np.nan, means.index)
        texts = {key: mean_with_interval(row) for key, row in summary.set_index(["system", "metric"]).iterrows()}
        shown = [metric for metric in (*HEADLINE, *METRICS) if metric in means]
        for system in sorted(systems, key=lambda name: (np.isnan(order[name]), order[name])):
            place = "" if np.isnan(order[system]) else int(order[system])
            values = {metric: texts.get((system, metric), "") for metric in dict.fromkeys(shown)}
            rows.append({"modality": modality, "rank": place, "system": system, **values})
    return pd.DataFrame(rows).fillna("")


def ranking_markdown(ranking: pd.DataFrame, notes: Mapping[str, str]) -> str:
    """Format the ranking as Markdown: a table of the columns in `HEADLINE` for each modality, then the notes."""
    parts = ["# Ranking", "Mean and its 95 % interval resampled by patient."]
    for modality, part in ranking.groupby("modality", sort=False):
        columns = [metric for metric in HEADLINE if metric in part and (part[metric] != "").any()]
        header = ["system", "rank", *(f"{METRICS[metric].text} {METRICS[metric].arrow}" for metric in columns)]
        rows = part[["system", "rank", *columns]].astype(str).replace("", "–").to_numpy().tolist()
        parts += [f"## {modality}", markdown_table(header, rows)]
    if notes:
        parts += ["## Settings and checksums", "\n".join(f"- **{name}**: {text}" for name, text in notes.items())]
    return "\n\n".join(parts) + "\n"


def write_ranking(
    pairs: pd.DataFrame,
    results: Mapping[str, str | Path],
    ours: str,
    output: Path,
    *,
    workers: int | None = None,
    settings: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Score the systems and write all tables, the figure and the page of images.

    Args:
        pairs: of `read_pairs`.
        results: system -> folder.
        ours: the system that the others are tested against.
        output: folder to write to.
        workers: processes that score.
        settings: system -> how it was run, in words.

    Returns:
        As `rank`.

    Raises:
        FileError: a file is missing or cannot be used, or a result would be written over.
    """
    files = [output / f"ranking.{suffix}" for suffix in ("csv", "md", "html")]
    check_inputs_stay((path for column in (*FILES, *GREY_COLUMNS) for path in pairs[column].dropna()), files)
    scores = score_systems(pairs, results, workers)
    patients = dict(zip(pairs["name"], pairs["group"], strict=True))
    summaries = {}
    for modality, tables in scores.items():
        if ours not in tables:
            raise FileError.at(results[ours], f"a folder {modality} with the results", "nothing there")
        summaries[modality] = summary = summarise(tables, ours, patients)
        report = comparison_report(summary, ours, f"{modality}: {', '.join(tables)}")
        of_pairs = pd.concat(tables, names=["system"]).reset_index()
        write_bytes(output / f"{modality}.md", report.encode())
        for name, table in ((modality, summary), (f"{modality}_pairs", of_pairs)):
            write_table(output / f"{name}.csv", table, "%.10g")
    ranking = rank(summaries)
    notes = {name: f"{(settings or {}).get(name, 'results as given')}; SHA-256 {results_checksum(folder, pairs)}"
             for name, folder in results.items()}  # fmt: skip
    write_table(files[0], ranking)
    write_bytes(files[1], ranking_markdown(ranking, notes).encode())
    save_figure(output / "error_against_time.png", figure_error_against_time(summaries))
    write_systems_page(files[2], summaries, _pictures(pairs, results), notes)
    return ranking


def _pictures(pairs: pd.DataFrame, results: Mapping[str, str | Path]) -> list[SystemImages]:
    """List the files of the page: for each pair its sources and what each system gives."""
    pictures = []
    for modality, part in pairs.groupby("modality", sort=False):
        files_of = {system: outputs_of(folder, part) for system, folder in results.items()
                 if any(Path(folder, name).is_dir() for name in (modality, f"{modality}-MRI"))}  # fmt: skip
        for pair in part.to_dict("records"):
            sources = {"Fixed": pair["fixed"], "Moving": pair["moving"], "Label": pair["label"]}
            outputs = {system: files[pair["name"]] for system, files in files_of.items()}
            pictures.append(SystemImages(f"{modality} {pair['name']}", sources, outputs))
    return pictures


def add_pairs_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which pairs and systems are ranked."""
    parser.add_argument("--csv", metavar="FILE", required=True,
                        help="table of the pairs, with their truth in the column label")
    parser.add_argument("--root", metavar="DIR",
                        help="folder that the paths of the table start from (default: that of the table)")
    parser.add_argument("--modality", type=modality_name, choices=(*MODALITIES, "all"), default="all",
                        help="modality of the pairs (default: %(default)s)")
    parser.add_argument("--split", type=split_name, choices=SPLITS,
                        help="rows of the table to take, by their column split (default: all)")
    parser.add_argument("--fold", type=positive, metavar="N",
                        help="rows of the table to take, by their column fold: the patients that a training on the "
                             "other folds has not seen (default: all)")
    add_group_pattern(parser)
    parser.add_argument("--results", metavar="NAME=DIR", type=system_and_folder, action="append", default=[],
                        help="name of a system and the folder of its results; repeat for each system")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="folder to write to")
    add_workers(parser)


def chosen_pairs(options: argparse.Namespace) -> pd.DataFrame:
    """Read the pairs that the options of `add_pairs_options` name; as `read_pairs`."""
    root = options.root or Path(options.csv).parent
    chosen = {"split": options.split, "fold": options.fold, "pattern": options.group_pattern}
    return read_pairs(options.csv, root, options.modality, **chosen)


def system_and_folder(text: str) -> tuple[str, Path]:
    """Parse NAME=DIR of the command line.

    Raises:
        ArgumentTypeError: the text is none, or the name is taken.
    """
    name, sign, folder = text.partition("=")
    if not sign or not folder or not re.fullmatch(r"[\w .+()-]+", name) or name == BEFORE_ALIGNMENT:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, found {text!r}")
    return name, Path(folder)


def unique_results(parser: argparse.ArgumentParser, pairs: list[tuple[str, Path]]) -> dict[str, Path]:
    """Return the systems by name; end the command where a name stands twice."""
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--results: expected a name for each system, found {name!r} more than once")
    return dict(pairs)


def run(options: argparse.Namespace, results: dict[str, Path], ours: str) -> None:
    """Rank the systems, and print the ranking.

    Raises:
        FileError: as `read_pairs` and `write_ranking`.
    """
    pairs = chosen_pairs(options)
    write_ranking(pairs, results, ours, options.output, workers=options.workers)
    print((options.output / "ranking.md").read_text(encoding="utf-8"))
    print(f"{counted(len(pairs), 'pair')}; pictures of all systems in {options.output / 'ranking.html'}")


def main(arguments: list[str] | None = None) -> int:
    """Run ``python -m tools.rank``; return the exit status."""
    print_anywhere()
    parser = OneLineParser("python -m tools.rank", description=__doc__)
    add_pairs_options(parser)
    parser.add_argument("--ours", metavar="NAME",
                        help="name of the system that the others are tested against (default: the first)")
    options = parser.parse_args(arguments)
    results = unique_results(parser, options.results)
    if not results:
        parser.error("--results: expected at least one system, found none")
    ours = options.ours or next(iter(results))
    if ours not in results:
        parser.error(f"--ours: expected one of {', '.join(results)}, found {ours!r}")
    return run_command(parser.prog, run, options, results, ours)


if __name__ == "__main__":
    sys.exit(main())
