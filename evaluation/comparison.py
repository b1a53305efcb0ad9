"""Several systems on the same pairs: means with intervals, paired tests against one of them, effect sizes."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from evaluation.intervals import mean_interval
from evaluation.metrics import LOWER_IS_BETTER
from evaluation.report.columns import METRICS, metric_of
from utils.messages import markdown_table

BEFORE_ALIGNMENT = "before alignment"
"""Name under which the moving images as they came are listed among the systems."""


def lower_is_better(metric: str) -> bool:
    """Return whether a metric improves as it falls."""
    return METRICS[metric].better < 0 if metric in METRICS else metric in LOWER_IS_BETTER


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """Correct p values for the number of tests (Holm, Scandinavian Journal of Statistics 6, 1979); NaN stays NaN."""
    p = np.asarray(p, float)
    corrected = np.full(p.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected


def rank_biserial(gain: Sequence[float]) -> float:
    """Compute the effect size of a Wilcoxon signed-rank test: the matched-pairs rank-biserial correlation (Kerby 2014).

    Args:
        gain: differences, one a pair.

    Returns:
        Share of the rank sum that is positive less the share that is negative: from -1 (all below zero) to 1 (all
        above); 0 where nothing differs.
    """
    gain = np.asarray(gain, float)
    gain = gain[gain != 0]
    if not len(gain):
        return 0.0
    ranks = stats.rankdata(np.abs(gain))
    return float((ranks * np.sign(gain)).sum() / ranks.sum())


def summarise(
    scores: Mapping[str, pd.DataFrame], ours: str, patients: Mapping[str, object] | None = None
) -> pd.DataFrame:
    """Compute means, intervals and paired tests of several systems.

    Args:
        scores: system -> table with a row a pair, the pair's name as index and a column a metric. Systems may
            lack metrics, not pairs.
        ours: the system that the others are tested against.
        patients: name of a pair -> patient; where left out, each pair counts as a patient of its own.

    Returns:
        A row for each metric and system: ``metric``, ``better`` ("higher" or "lower"), ``system``, ``pairs``,
        ``mean``, ``low`` and ``high`` (`evaluation.intervals.mean_interval`), ``std`` (sample standard deviation, NaN
        for one pair), ``p`` (two-sided Wilcoxon signed-rank test against ours, 1 where no pair differs), ``p_holm``
        (the same, corrected for all tests of the table), ``effect`` (:func:`rank_biserial`, positive where ours is
        better) and ``ours_better`` (share of pairs, 0..1, in which ours is strictly better). The last four are NaN for
        ours and for metrics that ours lacks.

    Raises:
        ValueError: ours is not among the systems, or a system has other pairs.
    """
    if ours not in scores:
        raise ValueError(f"ours: expected one of {', '.join(scores)}, found {ours}")
    metrics = list(dict.fromkeys(metric for table in scores.values() for metric in table.columns))
    rows = []
    for metric in metrics:
        lower = lower_is_better(metric)
        for system, table in scores.items():
            if set(table.index) != set(scores[ours].index):
                raise ValueError(f"{system}: expected the same pairs as {ours}, found others")
            if metric not in table or table[metric].isna().all():
                continue
            values = table[metric].dropna()
            low, high = mean_interval(values, [patients[name] for name in values.index] if patients else values.index)
            row = {
                "metric": metric,
                "better": "lower" if lower else "higher",
                "system": system,
                "pairs": len(values),
                "mean": values.mean(),
                "low": low,
                "high": high,
                "std": values.std(),
                "p": np.nan,
                "effect": np.nan,
                "ours_better": np.nan,
            }
            if system != ours and metric in scores[ours]:
                row |= _against(scores[ours][metric], values, lower)
            rows.append(row)
    summary = pd.DataFrame(rows)
    summary.insert(summary.columns.get_loc("p") + 1, "p_holm", holm(summary["p"]))
    return summary


def _against(ours: pd.Series, theirs: pd.Series, lower: bool) -> dict[str, float]:
    """Run the paired test of one metric, over the pairs that both have a value of."""
    gain = ((ours - theirs) * (-1 if lower else 1)).dropna()
    if gain.empty:
        return {}
    return {
        "p": stats.wilcoxon(gain).pvalue if gain.any() else 1.0,
        "effect": rank_biserial(gain),
        "ours_better": float((gain > 0).mean()),
    }


def comparison_report(summary: pd.DataFrame, ours: str, title: str) -> str:
    """Format the tables of a report in Markdown.

    Args:
        summary: what :func:`summarise` returned.
        ours: the system that the others were tested against.
        title: heading of the report.

    Returns:
        A table of means with their intervals, best mean in bold, and one of the tests against ours.
    """
    systems = list(dict.fromkeys(summary["system"]))
    others = [system for system in systems if system != ours]
    means, tests = [], []
    for metric, rows in summary.groupby("metric", sort=False):
        label = f"{metric_of(metric).text} {'↓' if rows['better'].iloc[0] == 'lower' else '↑'}"
        by_system = rows.set_index("system")
        means.append([label, *(_mean_cell(by_system, system) for system in systems)])
        if by_system["p"].notna().any():
            tests.append([label, *(_test_cell(by_system, system) for system in others)])
    parts = [
        f"# {title}",
        f"{summary['pairs'].max()} pairs, mean and its 95 % interval resampled by patient, best mean in bold. "
        "↑ higher is better, ↓ lower is better.",
        markdown_table(["metric", *systems], means),
    ]
    if tests:
        parts += [
            f"## {ours} against the others",
            "p of the two-sided paired Wilcoxon signed-rank test with Holm's correction for all tests of this table, "
            f"effect size r (matched-pairs rank-biserial correlation, positive where {ours} is better), and the share "
            f"of pairs in which {ours} is better.",
            markdown_table(["metric", *others], tests),
        ]
    return "\n\n".join([*parts, _legend(summary["metric"].unique())]) + "\n"


def mean_with_interval(row: pd.Series) -> str:
    """Write a mean with its interval, as in ``2.29 [2.01, 2.60]``."""
    digits = 1 if abs(row["mean"]) >= 100 else 2 if abs(row["mean"]) >= 10 else 3
    text = f"{row['mean']:.{digits}f}"
    return text if np.isnan(row["low"]) else f"{text} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def _mean_cell(rows: pd.DataFrame, system: str) -> str:
    if system not in rows.index:
        return "–"
    best = rows["mean"].min() if rows["better"].iloc[0] == "lower" else rows["mean"].max()
    text = mean_with_interval(rows.loc[system])
    return f"**{text}**" if rows.loc[system, "mean"] == best else text


def _test_cell(rows: pd.DataFrame, system: str) -> str:
    if system not in rows.index or np.isnan(rows.loc[system, "p"]):
        return "–"
    row = rows.loc[system]
    p = "p < 0.001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}"
    return f"{p}, r = {row['effect']:+.2f}, {row['ours_better']:.0%}"


def _legend(metrics: Sequence[str]) -> str:
    named = [f"{metric_of(metric).text} (column {metric}): {metric_of(metric).description}" for metric in metrics
             if metric_of(metric).description]  # fmt: skip
    return "; ".join(named) + "." if named else ""
