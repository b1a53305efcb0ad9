"""What `evaluation.comparison.summarise` found, as a table for the terminal and as a figure."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.markup import escape
from rich.table import Table

from evaluation.comparison import mean_with_interval
from evaluation.figures import new_figure
from evaluation.report.columns import metric_of

SIGNIFICANT = 0.05
"""P value, after Holm's correction, below which a difference gets a star."""

_OURS, _OTHERS = "#0a6a8f", "#7d868d"


def to_table(summary: pd.DataFrame, ours: str, title: str) -> Table:
    """Make the table for the terminal.

    Args:
        summary: of `evaluation.comparison.summarise`.
        ours: the system that the others were tested against.
        title: headline.

    Returns:
        A row a metric: means with 95 % intervals, the best in bold; behind those of the other systems the effect
        size against ours, with a star where the corrected p value is below `SIGNIFICANT`.
    """
    systems = list(dict.fromkeys(summary["system"]))
    caption = f"mean [95 % interval] effect size, above 0 where {ours} is better; * p < {SIGNIFICANT:g} (Holm)"
    table = Table("metric", *map(escape, systems), title=escape(title), caption=escape(caption))
    for metric, rows in summary.groupby("metric", sort=False):
        lower = rows["better"].iloc[0] == "lower"
        best = rows["mean"].min() if lower else rows["mean"].max()
        by_system = rows.set_index("system")
        cells = [_cell(by_system.loc[name], best) if name in by_system.index else "–" for name in systems]
        table.add_row(f"{escape(metric_of(metric).text)} {'↓' if lower else '↑'}", *cells)
    return table


def _cell(row: pd.Series, best: float) -> str:
    mean = escape(mean_with_interval(row))
    mean = f"[bold]{mean}[/bold]" if row["mean"] == best else mean
    if np.isnan(row["p"]):
        return mean
    return f"{mean} {row['effect']:+.2f}{'*' if row['p_holm'] < SIGNIFICANT else ''}"


def figure_comparison(summary: pd.DataFrame, ours: str) -> Figure:
    """Draw a panel a metric: the mean of each system with its 95 % interval, ours in colour.

    Args:
        summary, ours: as of `to_table`.
    """
    systems = list(dict.fromkeys(summary["system"]))
    metrics = list(summary.groupby("metric", sort=False))
    across = min(4, len(metrics))
    down = math.ceil(len(metrics) / across)
    figure = new_figure(3.4 * across, down * (0.9 + 0.28 * len(systems)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(down, across, squeeze=False)
    for place, axes in enumerate(panels.flat):
        if place >= len(metrics):
            axes.set_visible(False)
            continue
        metric, rows = metrics[place]
        for row in rows.to_dict("records"):
            # Where there is one patient only, there is no interval.
            ends = [row["mean"] if np.isnan(row[end]) else row[end] for end in ("low", "high")]
            color, level = _OURS if row["system"] == ours else _OTHERS, systems.index(row["system"])
            axes.plot(ends, [level, level], color=color, linewidth=1.6)
            axes.plot(row["mean"], level, "o", color=color, markersize=5)
        arrow = "↓" if rows["better"].iloc[0] == "lower" else "↑"
        axes.set_title(f"{metric_of(metric).text} {arrow}", loc="left", fontsize=9)
        axes.set_ylim(len(systems) - 0.5, -0.5)
        axes.set_yticks(range(len(systems)), systems if place % across == 0 else [""] * len(systems), fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.locator_params(axis="x", nbins=4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", linewidth=0.4)
    return figure
