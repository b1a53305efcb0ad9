"""Results of any systems on the same pairs: read from their folders, and scored from their files by one function."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from data.splits import GROUP_PATTERN, patients_of
from data.table import FILES, DataError, read_table
from evaluation.comparison import BEFORE_ALIGNMENT
from evaluation.metrics import folding_share, registration_metrics
from evaluation.scoring import read_grey, score_pair
from utils.files import FileError
from utils.geometry.warp import apply_flow
from utils.imaging.flows import load_flow
from utils.imaging.images import read_image
from utils.imaging.pairing import list_images, plain_stem
from utils.processes import available_cores, pool_size

GREY_COLUMNS = ("grey_moving", "grey_label")
"""Columns of a table: the files of the registration metrics, where their grey levels are not those of the label."""

KINDS = {"fused": ("fused_rgb", "fused"), "aligned": ("aligned",), "flow": ("flow",)}
"""What a system gives, and the folders in which it may lie; the first one that is there counts."""


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
            # Brings torch, which processes that score images alone do not need.
            from inference.displacement import endpoint_scores

            scores["epe"] = endpoint_scores(flow, load_flow(pair["flow"], shape), read_image(pair["label"]))["epe"]
    return scores


def score_before(pair: Mapping) -> dict[str, float]:
    """Score the moving image as it came, which is zero flow."""
    flow = pair["flow"]
    images = {"label": pair["grey_label"] or pair["label"], "aligned": pair["grey_moving"] or pair["moving"]}
    scores = registration_metrics(*(read_grey(images[role]) for role in ("aligned", "label"))) | {"folding": 0.0}
    if flow is not None:
        from inference.displacement import endpoint_scores

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
