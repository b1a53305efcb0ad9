"""The plots of a page, as SVG: how the values of each metric are distributed, and how they changed."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from evaluation.report.columns import BEFORE_SUFFIX, before_and_after, format_value, improved, key_of, metric_of

_WIDTH, _LEFT, _RIGHT = 300, 12, 288


def charts_of(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict]:
    """Make a plot for each metric, of before and after where both exist. Constant columns need no plot."""
    charts = []
    for column in columns:
        if column.endswith(BEFORE_SUFFIX) and key_of(column) in columns:
            continue
        metric, values = metric_of(column), rows[column].dropna()
        digits = metric.digits
        chart = {
            "column": column,
            "metric": metric,
            "detail": f"mean {format_value(values.mean(), digits)}, sd {format_value(values.std(ddof=1), digits)}",
        }
        if column + BEFORE_SUFFIX in columns and not (paired := before_and_after(rows, column)).empty:
            good = int(improved(paired, metric.better).sum())
            chart["detail"] = (
                f"{format_value(paired['before'].mean(), digits)} → {format_value(paired['after'].mean(), digits)}, "
                f"{good} of {len(paired)} better"
            )
            chart["svg"] = _paired_plot(paired, metric.better)
        elif values.nunique() > 1:
            chart["svg"] = _strip_plot(values)
        else:
            continue
        charts.append(chart)
    return charts


def _strip_plot(values: pd.Series) -> Markup:
    """Plot a dot for each pair, stacked so that none hides another, over the middle half and the median."""
    middle, floor = 34.0, 66
    ends, axis = _axis(values.min(), values.max(), floor)
    x, radius = _to_x(values, ends), _radius(len(values))
    order = np.argsort(x, kind="stable")
    stacked: dict[int, int] = {}
    offset = np.zeros(len(x))
    for index in order:
        bin_ = int(x[index] // (2 * radius))
        level = stacked[bin_] = stacked.get(bin_, -1) + 1
        offset[index] = (level + 1) // 2 * (1 if level % 2 else -1) * 2 * radius
    # Tall stacks are pressed together rather than cut off.
    offset *= min(1.0, 28.0 / max(np.abs(offset).max(initial=0.0), 1.0))
    first, median, third = _to_x(values.quantile([0.25, 0.5, 0.75]), ends)
    box = f'<rect class="box" x="{first:.1f}" y="8" width="{max(third - first, 1):.1f}" height="52" rx="3"/>'
    line = f'<path class="median" d="M{median:.1f} 8v52"/>'
    return _svg(84, [box, line, *axis, *_dots(x, middle + offset, values.index, radius)])


def _paired_plot(paired: pd.DataFrame, better: int) -> Markup:
    """Plot before above and after below, with a line for each pair; pairs that got worse stand out."""
    above, below, floor = 20.0, 62.0, 78
    ends, axis = _axis(paired.min(axis=None), paired.max(axis=None), floor)
    x_before, x_after = _to_x(paired["before"], ends), _to_x(paired["after"], ends)
    good, radius = improved(paired, better), _radius(len(paired))
    lines = [
        f'<path class="link{"" if is_good else " worse"}" data-i="{index}" '
        f'd="M{start:.1f} {above}L{stop:.1f} {below}"/>'
        for start, stop, is_good, index in zip(x_before, x_after, good, paired.index, strict=True)
    ]
    dots = _dots(x_before, np.full(len(paired), above), paired.index, radius, " old")
    dots += _dots(x_after, np.full(len(paired), below), paired.index, radius)
    words = [
        f'<text x="{_LEFT}" y="{above - 10}">before</text>',
        f'<text x="{_LEFT}" y="{below - 10}">after</text>',
    ]
    # Many lines would run together to one patch.
    fade = min(1.0, math.sqrt(30 / len(paired)))
    return _svg(96, [f'<g style="--fade:{fade:.2f}">', *lines, "</g>", *axis, *dots, *words])


def _axis(low: float, high: float, y: float) -> tuple[np.ndarray, list[str]]:
    """Return the ends of the axis, and its ticks and labels as SVG."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    ends = np.array([low - margin, high + margin])
    ticks = [
        tick
        for tick in MaxNLocator(nbins=5, steps=[1, 2, 5, 10]).tick_values(low, high)
        if ends[0] <= tick <= ends[1]
    ]
    step = min(np.diff(ticks), default=1.0)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    parts = [f'<path class="axis" d="M{_LEFT} {y}H{_RIGHT}"/>']
    for tick, x in zip(ticks, _to_x(ticks, ends), strict=True):
        parts.append(f'<path class="axis" d="M{x:.1f} {y}v4"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 15}" text-anchor="middle">{format_value(tick, digits)}</text>')
    return ends, parts


def _to_x(values: Iterable[float], ends: np.ndarray) -> np.ndarray:
    return np.interp(np.asarray(values, dtype=float), ends, (_LEFT, _RIGHT))


def _dots(x: np.ndarray, y: np.ndarray, indices: Iterable[int], radius: float, kind: str = "") -> list[str]:
    return [
        f'<circle class="dot{kind}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius}" data-i="{index}"/>'
        for cx, cy, index in zip(x, y, indices, strict=True)
    ]


def _radius(count: int) -> float:
    return 3.4 if count <= 60 else 2.4 if count <= 300 else 1.5


def _svg(height: int, parts: Iterable[str]) -> Markup:
    # Everything inside is made of numbers and fixed words, so nothing needs to be escaped.
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {height}" aria-hidden="true">{"".join(parts)}</svg>')
