"""Rank the results of any systems on the same pairs, all scored from their files by one function.

    python -m tools.rank --csv BENCH/pairs.csv --results EDARFusion=results --results Mine=my_results --output RANKING

A folder of results holds, for each modality, MODALITY/fused, MODALITY/aligned (images) and MODALITY/flow (NAME.npy), as
the test command writes them; each of the three may be missing. Writes a Markdown report, the figures as CSV, the scores
of every pair, and for all modalities ranking.csv, ranking.md, ranking.html and error_against_time.png.

The table of pairs has a column label, and flow where endpoint errors are to be known. Where the truth for the
registration metrics is in other grey levels than the label, as in the unaligned benchmark of BSAFusion, the columns
grey_moving and grey_label name it.
"""

import argparse
import hashlib
import re
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.splits import GROUP_PATTERN, add_group_pattern, patients_of
from data.table import FILES, MODALITIES, SPLITS, DataError, modality_name, read_table, split_name
from evaluation.comparison import BEFORE_ALIGNMENT, comparison_report, mean_with_interval, summarise
from evaluation.figures import save_figure
from evaluation.metrics import folding_share, registration_metrics
from evaluation.report.columns import METRICS
from evaluation.report.systems import SystemImages, figure_error_against_time, write_systems_page
from evaluation.scoring import read_grey, score_pair
from utils.arguments import OneLineParser, add_workers, positive, print_anywhere
from utils.command import run_command
from utils.files import FileError, check_inputs_stay, write_bytes
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image
from utils.imaging.pairing import list_images, plain_stem
from utils.messages import counted, markdown_table
from utils.processes import available_cores, pool_size

GREY_COLUMNS = ("grey_moving", "grey_label")
"""Columns of a table: the files of the registration metrics, where their grey levels are not those of the label."""

KINDS = {"fused": ("fused_rgb", "fused"), "aligned": ("aligned",), "flow": ("flow",)}
"""What a system gives, and the folders in which it may lie; the first one that is there counts."""

HEADLINE = ("epe", "rmse", "ssim", "folding", "qabf", "qvif", "qcv", "qcb", "seconds")
"""Columns of the short table; all others stand in the tables of each modality."""


def read_pairs(
    csv: str | Path,
    root: str | Path,
    modality: str = "all",
    *,
    split: str | None = None,
    fold: int | None = None,
    pattern: str = GROUP_PATTERN,
) -> pd.DataFrame:
    """Read the pairs of a table, checked, with the patient of each.

    Args:
        csv, root, modality, split: as for `data.table.read_table`.
        fold: keep only rows of this one (needs the column); None keeps all.
        pattern: which names are one patient's where the table has no column group (`data.splits.patients_of`).

    Returns:
        Columns name, fixed, moving, label, flow, modality, group, grey_moving, grey_label; paths, None for columns
        that the table lacks.

    Raises:
        DataError: as `data.table.read_table`; there is no column label or modality, or a file in grey is missing.
    """
    table = read_table(csv, root, modality=modality, split=split)
    for column in ("label", "modality"):
        if column not in table:
            raise DataError.at(csv, f"a column {column}", f"columns {', '.join(table.columns)}")
    if (GREY_COLUMNS[0] in table) != (GREY_COLUMNS[1] in table):
        raise DataError.at(csv, f"both columns {' and '.join(GREY_COLUMNS)}, or neither", "one of them")
    if fold is not None:
        if "fold" not in table or str(fold) not in set(table["fold"]):
            folds = f"folds {', '.join(sorted(set(table['fold'])))}" if "fold" in table else "no column fold"
            raise DataError.at(csv, f"pairs of fold {fold}", folds)
        table = table[table["fold"] == str(fold)].reset_index(drop=True)
    table["group"] = patients_of(table, pattern)
    for column in (*FILES, *GREY_COLUMNS):
        known = column in table
        table[column] = [Path(root, path) if known and path else None for path in table.get(column, table["name"])]
        for path in table[column].dropna() if column in GREY_COLUMNS else ():
            if not path.is_file():
                raise DataError.at(csv, f"a file in column {column}", f"nothing at {path}")
    return table[["name", *FILES, "modality", "group", *GREY_COLUMNS]]


def outputs_of(folder: str | Path, pairs: pd.DataFrame) -> dict[str, dict[str, Path]]:
    """List the files that a system gives for the pairs of one modality.

    Args:
        folder: of all results of the system.
        pairs: rows of `read_pairs`, of one modality.

    Returns:
        Name of a pair -> kind, of `KINDS` -> file. A kind that the system does not give is in no pair.

    Raises:
        FileError: there is no folder for the modality, none of the kinds is in it, or files of pairs are missing.
    """
    modality = pairs["modality"].iloc[0]
    places = [Path(folder, name) for name in (modality, f"{modality}-MRI")]
    place = next((path for path in places if path.is_dir()), None)
    if place is None:
        raise FileError.at(folder, f"a folder {modality} with the results", "nothing there")
    results: dict[str, dict[str, Path]] = {name: {} for name in pairs["name"]}
    for kind, folders in KINDS.items():
        path = next((place / name for name in folders if (place / name).is_dir()), None)
        if path is None:
            continue
        files = sorted(path.glob("*.npy")) if kind == "flow" else list_images(path)
        by_name = {plain_stem(file): file for file in files}
        missing = [name for name in results if name not in by_name]
        if missing:
            raise FileError.at(path, f"a result for each of {len(results)} pairs", f"none for {missing[0]}")
        for name in results:
            results[name][kind] = by_name[name]
    if not any(results.values()):
        raise FileError.at(place, f"one or more of the folders {', '.join(KINDS)}", "none of them")
    return results


def score_outputs(pair: Mapping, outputs: Mapping[str, Path]) -> dict[str, float]:
    """Score what a system gives for one pair, all from files.

    Args:
        pair: a row of `read_pairs`.
        outputs: files by kind, of `outputs_of`.

    Returns:
        Scores by column of metrics.csv, those that can be known; the pair's own registration metrics are those of the
        grey files where the table names them.

    Raises:
        FileError: a file cannot be used, or sizes differ.
    """
    images = {"fixed": pair["fixed"], "reference": pair["label"], "fused": outputs.get("fused")}
    if pair["grey_label"] is None:
        images |= {"label": pair["label"], "aligned": outputs.get("aligned")}
    scores = score_pair({"name": pair["name"], **images})
    del scores["name"]
    shape = read_image(pair["fixed"]).shape
    flow = load_flow(outputs["flow"], shape) if "flow" in outputs else None
    if pair["grey_label"] is not None and (flow is not None or "aligned" in outputs):
        if flow is None:
            aligned = read_grey(outputs["aligned"])
        else:
            # With 8 bits, as the systems that give images have them.
            aligned = np.rint(apply_flow(read_image(pair["grey_moving"]), flow).astype(np.float64) * 255)
        scores |= registration_metrics(aligned, read_grey(pair["grey_label"]))
    if flow is not None:
        scores["folding"] = folding_share(flow)
        if pair["flow"] is not None:
            # Brings the network's code, which those who score images alone do not need.
            from inference.pair_fuser import endpoint_scores

            scores["epe"] = endpoint_scores(flow, load_flow(pair["flow"], shape), read_image(pair["label"]))["epe"]
    return scores


def score_before(pair: Mapping) -> dict[str, float]:
    """Score the moving image as it came, which is zero flow."""
    flow = pair["flow"]
    images = {"label": pair["grey_label"] or pair["label"], "aligned": pair["grey_moving"] or pair["moving"]}
    scores = registration_metrics(*(read_grey(images[role]) for role in ("aligned", "label"))) | {"folding": 0.0}
    if flow is not None:
        from inference.pair_fuser import endpoint_scores

        true_flow = load_flow(flow, read_image(pair["fixed"]).shape)
        scores["epe"] = endpoint_scores(true_flow, true_flow, read_image(pair["label"]))["epe_before"]
    return scores


def _score(job: tuple[dict, dict | None]) -> dict[str, float]:
    pair, outputs = job
    return score_before(pair) if outputs is None else score_outputs(pair, outputs)


def score_systems(
    pairs: pd.DataFrame, results: Mapping[str, str | Path], workers: int | None = None
) -> dict[str, dict[str, pd.DataFrame]]:
    """Score all systems on all pairs, modality by modality.

    Args:
        pairs: of `read_pairs`.
        results: system -> folder.
        workers: processes; one a core if left out.

    Returns:
        Modality -> system -> table for `evaluation.comparison.summarise`, `BEFORE_ALIGNMENT` first. A system without a
        folder for a modality is not in that one's tables.

    Raises:
        FileError: a file is missing or cannot be used.
    """
    jobs, keys = [], []
    for modality, part in pairs.groupby("modality", sort=False):
        outputs: dict[str, dict | None] = {BEFORE_ALIGNMENT: None}
        for system, folder in results.items():
            if any(Path(folder, name).is_dir() for name in (modality, f"{modality}-MRI")):
                outputs[system] = outputs_of(folder, part)
        if len(outputs) == 1:
            raise FileError.at(next(iter(results.values())), f"a folder {modality} with the results", "nothing there")
        for system, files in outputs.items():
            for pair in part.to_dict("records"):
                jobs.append((pair, files and files[pair["name"]]))
                keys.append((modality, system, pair["name"]))
    workers = pool_size(min(workers or available_cores(), len(jobs)))
    progress = partial(tqdm, total=len(jobs), desc="scoring", unit="result")
    if workers == 1:
        scores = list(progress(map(_score, jobs)))
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            scores = list(progress(pool.map(_score, jobs, chunksize=4)))
    index = pd.MultiIndex.from_tuples(keys, names=["modality", "system", "name"])
    table = pd.DataFrame(scores, index=index)
    tables: dict[str, dict[str, pd.DataFrame]] = {}
    for (modality, system), part in table.groupby(level=["modality", "system"], sort=False):
        scored = part.droplevel(["modality", "system"]).dropna(axis="columns", how="all")
        seconds = _seconds(results[system], modality) if system in results else None
        if seconds is not None:
            scored["seconds"] = seconds.reindex(scored.index)
        tables.setdefault(modality, {})[system] = scored
    return tables


def _seconds(folder: str | Path, modality: str) -> pd.Series | None:
    """Read the seconds of each pair, by name, from the table beside the results; None where there is none.

    Raises:
        FileError: the table cannot be read, or the seconds are no numbers.
    """
    path = Path(folder, modality, "metrics.csv")
    if not path.is_file():
        return None
    try:
        table = pd.read_csv(path, dtype={"name": str}, keep_default_na=False, na_values={"seconds": [""]})
        if not {"name", "seconds"} <= set(table):
            return None
        return table.drop_duplicates("name").set_index("name")["seconds"].astype(float)
    except ValueError as error:  # what pandas raises for a file that is no text, no table, or has words for numbers
        raise FileError.at(path, "a CSV table with numbers in the column seconds", str(error)) from error


def results_checksum(folder: str | Path, pairs: pd.DataFrame) -> str:
    """Return the SHA-256 over the files of all pairs, in the order of the table, which tells results from others."""
    digest = hashlib.sha256()
    for modality, part in pairs.groupby("modality", sort=False):
        if not any(Path(folder, name).is_dir() for name in (modality, f"{modality}-MRI")):
            continue
        for name, files in outputs_of(folder, part).items():
            for kind, path in files.items():
                digest.update(f"{modality}/{kind}/{name}".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


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
            text = table.to_csv(index=False, lineterminator="\n", float_format="%.10g")
            write_bytes(output / f"{name}.csv", text.encode())
    ranking = rank(summaries)
    notes = {name: f"{(settings or {}).get(name, 'results as given')}; SHA-256 {results_checksum(folder, pairs)}"
             for name, folder in results.items()}  # fmt: skip
    write_bytes(files[0], ranking.to_csv(index=False, lineterminator="\n").encode())
    write_bytes(files[1], ranking_markdown(ranking, notes).encode())
    save_figure(output / "error_against_time.png", figure_error_against_time(summaries))
    write_systems_page(files[2], summaries, _pictures(pairs, results), notes)
    return ranking


def _pictures(pairs: pd.DataFrame, results: Mapping[str, str | Path]) -> list[SystemImages]:
    """List the files of the page: for each pair its sources and what each system gives."""
    pictures = []
    for modality, part in pairs.groupby("modality", sort=False):
        given = {system: outputs_of(folder, part) for system, folder in results.items()
                 if any(Path(folder, name).is_dir() for name in (modality, f"{modality}-MRI"))}  # fmt: skip
        for pair in part.to_dict("records"):
            sources = {"Fixed": pair["fixed"], "Moving": pair["moving"], "Label": pair["label"]}
            outputs = {system: files[pair["name"]] for system, files in given.items()}
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
    """Parse NAME=DIR of the command line."""
    name, sign, folder = text.partition("=")
    if not sign or not folder or not re.fullmatch(r"[\w .+()-]+", name) or name == BEFORE_ALIGNMENT:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR, found {text!r}")
    return name, Path(folder)


def unique_results(parser: argparse.ArgumentParser, given: list[tuple[str, Path]]) -> dict[str, Path]:
    """Return the systems by name; end the command where a name stands twice."""
    names = [name for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            parser.error(f"--results: expected a name for each system, found {name!r} more than once")
    return dict(given)


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
