"""The table of metrics: its columns, how it is written and read."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from data.pairs import COLOR_MODALITIES, PairFiles
from evaluation.scoring import with_mean
from utils.files import FileError

FUSION_METRICS = ("qabf", "qcv", "qvif", "qs", "qssim", "qcb", "qy", "mi", "en", "sd", "sf", "ag")
REGISTRATION_METRICS = ("rmse", "ssim", "ncc", "rmse_before", "ssim_before", "ncc_before")
COLUMNS = ("name", "seconds", *FUSION_METRICS, "reference", *REGISTRATION_METRICS, "folding")
"""Columns of metrics.csv."""
LABEL_DICE = re.compile(r"dice_\d+")
"""Columns of the Dice coefficients of single labels."""
DIGITS = "%.10g"  # of numbers in metrics.csv
COLOR_FIDELITY = ("saturation_kept", "near_white", "hue_error", "tracer_order", "contrast_fixed", "contrast_moving")
FIDELITY_METRICS = {
    "CT": ("bone_holes", "contrast_fixed", "contrast_moving"),
    **dict.fromkeys(COLOR_MODALITIES, COLOR_FIDELITY),
}
"""Columns of `evaluation.metrics.fidelity_metrics` that say something of a modality."""
MARK_METRICS = ("tre", "tre_before", "tre_mm", "tre_mm_before", "dice", "dice_before")
"""Columns of `inference.marks`; a column dice_LABEL for each label follows them."""
FURTHER_COLUMNS = ("disagreement", "expected_error", "error_bound", "epe", "epe_before", *MARK_METRICS, "bone_holes",
                   *COLOR_FIDELITY)  # fmt: skip
"""Columns of those tables alone that know them: how far averaged estimates disagree, px of heads in 256 px; the
mean endpoint error that is to be expected in the head, px, and the mean bound below which 9 of 10 places are expected
to lie, if that is calibrated; where true flows are known, endpoint error of the flow and
of zero flow, px; what becomes of bone, colours and contrast."""


def rounded(rows: Iterable[Mapping]) -> list[dict]:
    """Round the numbers of rows as the table shows them, so that its mean is the same where some were read from it."""
    return [{key: float(DIGITS % x) if isinstance(x, float) else x for key, x in row.items()} for row in rows]


def table_text(rows: list[dict]) -> str:
    """Format rows as the text of metrics.csv, with a final row `mean`.

    Args:
        rows: of `rounded`; keys among `COLUMNS`, `FURTHER_COLUMNS` and dice_LABEL, others are left out.
    """
    further = [column for column in FURTHER_COLUMNS if any(column in row for row in rows)]
    further += sorted({column for row in rows for column in row if LABEL_DICE.fullmatch(column)}, key=_label_of)
    table = with_mean(pd.DataFrame(rows, columns=[*COLUMNS, *further]))
    return table.to_csv(index=False, lineterminator="\n", float_format=DIGITS)


def _label_of(column: str) -> int:
    return int(column.rpartition("_")[2])


_TEXTS = {"name": str, "reference": str}


def read_scores(path: Path) -> pd.DataFrame:
    """Read a table in which only an empty cell of other columns than texts is no number: a pair may be called NA.

    Raises:
        FileError: the file cannot be read, or is no such table.
    """
    try:
        columns = pd.read_csv(path, nrows=0).columns
        numbers = {column: [""] for column in columns if column not in _TEXTS}
        return pd.read_csv(path, dtype=_TEXTS, keep_default_na=False, na_values=numbers)
    except (OSError, ValueError) as error:
        # pandas' own errors are ValueErrors.
        raise FileError.at(path, "a table of metrics", str(error)) from error


def read_rows(path: Path) -> dict[str, dict]:
    """Read the rows of a table of metrics by name of the pair, without the mean.

    Raises:
        FileError: the file cannot be read, or lacks a column.
    """
    table = read_scores(path)
    missing = [column for column in COLUMNS if column not in table]
    if missing:
        raise FileError.at(path, f"the columns {', '.join(COLUMNS)}", f"no {', '.join(missing)}")
    rows = table.to_dict("records")
    if rows and rows[-1]["name"] == "mean":
        rows.pop()
    return {row["name"]: row for row in rows}


def reference_of(pair: PairFiles) -> str:
    """Return the role of the image that a fused one is scored against, beside the fixed image: label or aligned."""
    return "aligned" if pair.label is None else "label"
