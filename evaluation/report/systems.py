"""`ranking.html`: the images of several systems beside each other, and their error against their time."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from evaluation.comparison import mean_with_interval
from evaluation.figures import MUTED, new_figure
from evaluation.pictures import red_green_overlay
from evaluation.report.columns import METRICS, metric_of
from evaluation.report.page import template_of
from evaluation.report.pictures import LADDER, PAGE_BUDGET, encode_image, spread
from utils.files import write_bytes
from utils.imaging.images import read_image

_SIDE = 256
"""Longest side of a picture on the page, px."""


class SystemImages(NamedTuple):
    """The files of one pair.

    Attributes:
        name: of the pair, as the page shows it.
        sources: fixed image, moving image and label, by their headlines.
        outputs: system -> kind ("fused", "aligned") -> file.
    """

    name: str
    sources: Mapping[str, Path]
    outputs: Mapping[str, Mapping[str, Path]]


def figure_error_against_time(summaries: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw the mean error of each system over the seconds that it takes for a pair, one panel for each modality.

    The error is the endpoint error where it is known, else the RMSE; bars are 95 % intervals. A system whose seconds
    are not known is a dashed line.

    Args:
        summaries: modality -> what `evaluation.comparison.summarise` returns.
    """
    figure = new_figure(4.2 * len(summaries) + 0.3, 4.2)
    for number, (modality, summary) in enumerate(summaries.items(), start=1):
        axes = figure.add_subplot(1, len(summaries), number)
        by = "epe" if "epe" in set(summary["metric"]) else "rmse"
        rows = summary[summary["metric"] == by].set_index("system")
        seconds = summary[summary["metric"] == "seconds"].set_index("system")["mean"]
        for place, (system, row) in enumerate(rows.iterrows()):
            color = f"C{place % 10}"
            if system not in seconds:
                axes.axhline(row["mean"], color=color, linestyle="--", linewidth=1, label=system)
                continue
            ends = np.nan_to_num([[row["mean"] - row["low"]], [row["high"] - row["mean"]]])
            axes.errorbar(seconds[system], row["mean"], ends, color=color, marker="o", capsize=3, label=system)
        axes.set_xscale("log")
        for of_ticks in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            of_ticks(FuncFormatter(_plain_seconds))
        axes.set_ylim(bottom=0)
        axes.set_title(modality, loc="left")
        axes.set_xlabel("seconds a pair")
        axes.set_ylabel(f"{metric_of(by).text}, {'px' if by == 'epe' else 'grey levels'}")
        axes.tick_params(which="both", labelsize=8, colors=MUTED)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    return figure


def _plain_seconds(seconds: float, _: int) -> str:
    """Label the ticks of a logarithmic axis that begin with 1, 2, 3 or 5, without powers of ten."""
    return f"{seconds:g}" if f"{seconds:e}"[0] in "1235" else ""


def write_systems_page(
    path: str | Path,
    summaries: Mapping[str, pd.DataFrame],
    pairs: Sequence[SystemImages],
    notes: Mapping[str, str],
) -> None:
    """Write the page; it needs no network and no other file.

    Args:
        path: the HTML file.
        summaries: modality -> what `evaluation.comparison.summarise` returns.
        pairs: their files; where the page has no room for all, evenly spaced ones are shown.
        notes: system -> how it was run.

    Raises:
        FileError: an image cannot be read, or the page not be written.
    """
    stream = io.BytesIO()
    figure_error_against_time(summaries).savefig(stream, format="png")
    figure = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    first = _card(pairs[0])
    each = 1.3 * sum(len(image["uri"]) for row in first["rows"] for image in row["images"])
    shown = list(spread(pairs, max(1, int((PAGE_BUDGET - len(figure)) // each))))
    page = template_of("systems.html").render(
        tables={modality: _table(summary) for modality, summary in summaries.items()},
        notes=notes,
        figure=figure,
        cards=[_card(pair) for pair in shown],
        omitted=len(pairs) - len(shown),
    )
    write_bytes(path, page.encode("utf-8"))


def _table(summary: pd.DataFrame) -> dict:
    """Make the table of one modality: a row for each system, a column for each metric, the best of each marked."""
    metrics = [name for name in (*METRICS, *summary["metric"].unique()) if name in set(summary["metric"])]
    metrics = list(dict.fromkeys(metrics))
    rows = []
    for system, part in summary.groupby("system", sort=False):
        cells = []
        for metric in metrics:
            of_metric = summary[summary["metric"] == metric]
            own = part[part["metric"] == metric]
            best = of_metric["mean"].min() if of_metric["better"].iloc[0] == "lower" else of_metric["mean"].max()
            text = mean_with_interval(own.iloc[0]) if len(own) else "–"
            cells.append({"text": text, "best": len(own) > 0 and own["mean"].iloc[0] == best})
        rows.append({"system": system, "cells": cells})
    return {"metrics": [metric_of(name) for name in metrics], "rows": rows}


def _card(pair: SystemImages) -> dict:
    """Make the pictures of one pair: sources, then for each kind one picture for each system."""
    sources = {title: read_image(path, color=None) for title, path in pair.sources.items()}
    rows = [{"title": "Sources", "images": [_picture(title, image) for title, image in sources.items()]}]
    for kind in ("fused", "aligned"):
        outputs = {system: read_image(files[kind], color=None)
                   for system, files in pair.outputs.items() if kind in files}  # fmt: skip
        rows.append({"title": kind.capitalize(), "images": [_picture(name, image) for name, image in outputs.items()]})
        if kind == "aligned":
            overlays = {"before": sources["Moving"], **outputs}
            images = [_picture(name, red_green_overlay(sources["Fixed"], image)) for name, image in overlays.items()]
            rows.append({"title": "Overlay: red fixed, green aligned", "images": images})
    return {"name": pair.name, "rows": [row for row in rows if row["images"]]}


def _picture(title: str, image: np.ndarray) -> dict[str, str]:
    encoding = LADDER[0] if max(image.shape[:2]) <= _SIDE else LADDER[3]
    return {"title": title, "uri": encode_image(image, encoding._replace(quality=88))}
