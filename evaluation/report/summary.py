"""The figures that a reader looks for first: of all pairs, and above the images of each."""

import math
from collections.abc import Sequence

import pandas as pd

from evaluation.metrics.displacement import DOUBTFUL
from evaluation.report.columns import BEFORE_SUFFIX, METRICS, before_and_after, format_value, improved

_CARD_METRICS = ("epe", "rmse", "ssim", "ncc", "disagreement", "expected_error", "error_bound",
                 "qabf", "qvif", "qcv", "seconds")  # fmt: skip


def tiles_of(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict]:
    """Make the few figures that a reader looks for first."""
    tiles = []
    for key in ("epe", "rmse", "ssim", "ncc"):
        if key not in columns or key + BEFORE_SUFFIX not in columns:
            continue
        metric, paired = METRICS[key], before_and_after(rows, key)
        if paired.empty:
            continue
        good = int(improved(paired, metric.better).sum())
        tiles.append(
            {
                "metric": metric,
                "before": format_value(paired["before"].mean(), metric.digits),
                "value": format_value(paired["after"].mean(), metric.digits),
                "detail": f"{good} of {len(paired)} pairs better than before",
            }
        )
    for key in ("disagreement", "expected_error", "qabf", "qvif", "folding", "seconds"):
        if key not in columns:
            continue
        metric, values = METRICS[key], rows[key].dropna()
        detail = f"{format_value(values.min(), metric.digits)} to {format_value(values.max(), metric.digits)}"
        if key == "disagreement":
            doubtful = int((values > DOUBTFUL).sum())
            detail = f"{doubtful} of {len(values)} pairs above {DOUBTFUL:g}{': look closely' if doubtful else ''}"
        elif key == "expected_error":
            detail = "not calibrated, so without a bound"
            if "error_bound" in columns:
                bound = format_value(rows["error_bound"].mean(), METRICS["error_bound"].digits)
                detail = f"9 of 10 places below {bound}"
        tiles.append(
            {"metric": metric, "before": "", "value": format_value(values.mean(), metric.digits), "detail": detail}
        )
    return tiles


def facts_of(row: pd.Series, columns: Sequence[str]) -> list[dict]:
    """Make the figures that stand above the images of one pair."""
    facts = []
    for key in _CARD_METRICS:
        if key not in columns or pd.isna(row[key]):
            continue
        metric, value = METRICS[key], float(row[key])
        fact = {"metric": metric, "before": "", "value": format_value(value, metric.digits), "verdict": ""}
        before = row.get(key + BEFORE_SUFFIX, math.nan)
        if pd.notna(before):
            fact["before"] = format_value(float(before), metric.digits)
            gain = (value - float(before)) * metric.better
            fact["verdict"] = "better" if gain > 0 else "worse" if gain < 0 else ""
        elif key == "disagreement" and value > DOUBTFUL:
            fact["verdict"] = "doubtful"
        facts.append(fact)
    return facts
