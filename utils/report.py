"""`report.html`: one self-contained page with the metrics of a run, their distributions, and the images.

The page needs no network and no other file. Its markup, style and script stand in `report_template.html`;
what depends on the data is computed here.

Size: a page takes at most `PAGE_BUDGET` bytes. `LADDER` lists how images may be embedded, from lossless at
full size to small and compressed; the first step that fits is used for the whole page (20 pairs of 256 x 256
slices stay lossless, 250 colour pairs stay 256 x 256 at WebP quality 82). Where even the last step does
not fit, evenly spaced pairs are pictured, and the page says so. The table always has every pair.
"""

import base64
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.files import write_bytes


class PairImages(NamedTuple):
    """The images of one pair, float in [0, 1], (H, W) or (H, W, 3), of one size; only `extra` may differ."""

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    aligned: np.ndarray
    fused: np.ndarray
    label: np.ndarray | None = None
    extra: Mapping[str, np.ndarray] = {}


class Metric(NamedTuple):
    """How a column of the table is shown."""

    base: str
    superscript: str = ""
    subscript: str = ""
    better: int = 0  # +1: higher is better, -1: lower is better, 0: neither
    digits: int = 3
    description: str = ""

    @property
    def text(self) -> str:
        """The name in plain text."""
        return self.base + self.superscript + self.subscript

    @property
    def markup(self) -> Markup:
        """The name with its sub- and superscript."""
        above = Markup("<sup>{}</sup>").format(self.superscript) if self.superscript else ""
        below = Markup("<sub>{}</sub>").format(self.subscript) if self.subscript else ""
        return Markup("{}{}{}").format(self.base, above, below)

    @property
    def direction(self) -> str:
        """Which values are better, in words."""
        return {1: "higher is better", -1: "lower is better", 0: ""}[self.better]

    @property
    def arrow(self) -> str:
        """Which values are better, as a sign."""
        return {1: "↑", -1: "↓", 0: ""}[self.better]


DOUBTFUL = 1.0
"""Disagreement, px of 256, above which an alignment is in doubt.

Few validation pairs lie there, and nearly all pairs that do not belong together: experiment 83, checkpoints/README.md.
"""

METRICS: dict[str, Metric] = {
    "rmse": Metric(
        "RMSE", better=-1, digits=2, description="root mean square error to the label, grey levels"
    ),
    "ssim": Metric("SSIM", better=1, description="structural similarity to the label"),
    "ncc": Metric("NCC", better=1, description="normalised cross-correlation with the label"),
    "epe": Metric("EPE", better=-1, digits=2, description="endpoint error of the flow in tissue, pixels"),
    "disagreement": Metric(
        "Disagreement",
        better=-1,
        digits=2,
        description=f"of averaged estimates, pixels of 256: above {DOUBTFUL:g} look closely",
    ),
    "folding": Metric(
        "Folding", better=-1, digits=4, description="share of pixels whose Jacobian is not positive"
    ),
    "qabf": Metric("Q", "AB/F", better=1, description="edges that the fusion keeps (Xydeas and Petrovic)"),
    "qcv": Metric("Q", "", "CV", -1, 1, "perceived difference to the sources (Chen and Varshney)"),
    "qvif": Metric("Q", "", "VIF", 1, 3, "visual information fidelity for fusion (Han et al.)"),
    "qs": Metric("Q", "", "S", 1, 3, "structural quality index (Piella and Heijmans)"),
    "qssim": Metric("Q", "", "SSIM", 1, 3, "structural similarity to both sources"),
    "qcb": Metric("Q", "", "CB", 1, 3, "human perception model (Chen and Blum)"),
    "qy": Metric("Q", "", "Y", 1, 3, "structural similarity where the sources agree (Yang et al.)"),
    "mi": Metric("MI", better=1, description="mutual information with both sources"),
    "en": Metric("EN", better=1, description="entropy of the fused image, bits"),
    "sd": Metric("SD", better=1, digits=2, description="standard deviation of the fused image"),
    "sf": Metric("SF", better=1, digits=2, description="spatial frequency of the fused image"),
    "ag": Metric("AG", better=1, digits=2, description="average gradient of the fused image"),
    "seconds": Metric("Seconds", better=-1, description="time for the pair"),
}
"""Columns of metrics.csv by name, in the order of the page. Columns not listed here follow, without arrow."""

_BEFORE = "_before"
_REGISTRATION = ("rmse", "ssim", "ncc", "epe", "disagreement", "folding")
_CARD_METRICS = ("epe", "rmse", "ssim", "ncc", "disagreement", "qabf", "qvif", "qcv", "seconds")

PAGE_BUDGET = 14_000_000
"""Bytes that a page may take, with room up to 15 MB. Tables of over 2,800 rows leave none for images."""
_BYTES_PER_ROW = 5_000  # table row, plot marks and card of a pair, without its images


class Encoding(NamedTuple):
    """One way to embed images: WebP of a quality (None: lossless), sides up to `side` pixels (None: any)."""

    quality: int | None
    side: int | None

    def __str__(self) -> str:
        quality = "without loss" if self.quality is None else f"as WebP of quality {self.quality}"
        size = "at full size" if self.side is None else f"with at most {self.side} pixels a side"
        return f"{quality}, {size}"


LADDER = (
    Encoding(None, None),
    Encoding(92, None),
    Encoding(88, 384),
    Encoding(82, 256),
    Encoding(75, 192),
    Encoding(65, 128),
)


def write_report(
    path: str | os.PathLike,
    table: pd.DataFrame,
    pairs: Sequence[PairImages],
    title: str,
    notes: Mapping[str, object] | None = None,
) -> None:
    """Write the report; the file appears whole or not at all.

    Args:
        path: the HTML file; missing folders are made.
        table: metrics.csv: a column `name`, columns of `METRICS`, their `..._before`, `reference`, any more.
            A last row named `mean` is kept at the bottom; without one the means are computed. Empty columns
            (no label was given) are left out.
        pairs: images by pair, matched with the table by name. May be empty or fewer than the rows.
        title: headline and title of the page.
        notes: facts about the run (checkpoint, device, versions), shown under the headline.

    Raises:
        ValueError: the table has no column `name` or no row, or a pair's images do not go together.
    """
    if "name" not in table.columns:
        found = ", ".join(map(str, table.columns)) or "no column"
        raise ValueError(f"{path}: expected a table with the column 'name', found {found}")
    table = table.assign(name=table["name"].astype(str)).reset_index(drop=True)
    has_mean = len(table) > 0 and table["name"].iloc[-1] == "mean"
    rows = table.iloc[:-1] if has_mean else table
    if rows.empty:
        raise ValueError(f"{path}: expected a table with at least one pair, found {len(table)} row(s)")
    columns = _columns(rows)
    means = table.iloc[-1] if has_mean else rows[columns].mean()

    row_of_name = {name: index for index, name in reversed(list(enumerate(rows["name"])))}
    cards, encoding, omitted = _cards(pairs, PAGE_BUDGET - _BYTES_PER_ROW * len(rows))
    card_of_name = {card["name"]: index for index, card in reversed(list(enumerate(cards)))}
    for card in cards:
        row = row_of_name.get(card["name"])
        card["row"] = row
        card["facts"] = [] if row is None else _facts(rows.iloc[row], columns)

    tiles = _tiles(rows, columns)
    references = rows["reference"].dropna().astype(str).unique() if "reference" in rows else []
    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("report_template.html")
    page = template.render(
        title=title,
        notes={str(key): str(value) for key, value in (notes or {}).items()},
        tiles=tiles,
        tiles_across=len(tiles) + 1 if len(tiles) < 5 else math.ceil((len(tiles) + 1) / 2),
        groups=_groups(columns),
        headers=_headers(columns),
        references=list(references),
        show_reference=len(references) > 1,
        rows=[_row(row, rows, columns, card_of_name) for _, row in rows.iterrows()],
        means=_cells(means, columns),
        legend=[METRICS[key] for key in dict.fromkeys(map(_key, columns)) if key in METRICS],
        charts=_charts(rows, columns),
        cards=cards,
        encoding=str(encoding),
        reduced=encoding != LADDER[0],
        omitted=omitted,
        total=len(pairs),
    )
    write_bytes(path, page.encode("utf-8"))


def _check_pair(pair: PairImages) -> None:
    for view, image in _views(pair):
        shape = np.shape(image)
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] != 3) or 0 in shape:
            raise ValueError(f"pair {pair.name}: expected {view} of shape (H, W) or (H, W, 3), found {shape}")
    height, width = np.shape(pair.fixed)[:2]
    for view, image in _views(pair._replace(extra={})):
        found = np.shape(image)[:2]
        if found != (height, width):
            raise ValueError(
                f"pair {pair.name}: expected {view} of {height} x {width} like Fixed, "
                f"found {found[0]} x {found[1]}"
            )


# ---- table ----


def _key(column: str) -> str:
    return column.removesuffix(_BEFORE)


def _metric(column: str) -> Metric:
    return METRICS.get(_key(column), Metric(_key(column), digits=4))


def _columns(rows: pd.DataFrame) -> list[str]:
    """Numeric columns that hold a value, each `..._before` in front of its own, registration first."""
    numeric = {column for column in rows.select_dtypes("number").columns if rows[column].notna().any()}
    known = [column for key in METRICS for column in (key + _BEFORE, key) if column in numeric]
    return known + [column for column in rows.columns if column in numeric.difference(known)]


def _group(column: str) -> str:
    key = _key(column)
    if key in _REGISTRATION:
        return "Registration"
    return "Fusion" if key in METRICS and key != "seconds" else "Run"


def _groups(columns: Iterable[str]) -> list[tuple[str, int]]:
    groups: list[tuple[str, int]] = []
    for column in columns:
        name = _group(column)
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    return groups


def _headers(columns: Sequence[str]) -> list[dict]:
    previous = [None, *map(_group, columns)]
    return [
        {
            "column": column,
            "metric": _metric(column),
            "before": column.endswith(_BEFORE),
            "when": "before" if column.endswith(_BEFORE) else "after" if column + _BEFORE in columns else "",
            "starts_group": _group(column) != before,
        }
        for column, before in zip(columns, previous, strict=False)
    ]


def _format(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def _cells(row: pd.Series, columns: Sequence[str]) -> list[dict]:
    values = [float(pd.to_numeric(row.get(column, math.nan), errors="coerce")) for column in columns]
    return [
        {"value": repr(value) if math.isfinite(value) else "", "text": _format(value, _metric(column).digits)}
        for value, column in zip(values, columns, strict=True)
    ]


def _row(row: pd.Series, rows: pd.DataFrame, columns: Sequence[str], card_of_name: Mapping[str, int]) -> dict:
    cells = _cells(row, columns)
    for cell, column in zip(cells, columns, strict=True):
        better = 0 if column.endswith(_BEFORE) else _metric(column).better
        extreme = rows[column].max() if better > 0 else rows[column].min()
        cell["best"] = better != 0 and rows[column].nunique() > 1 and row[column] == extreme
    return {
        "name": row["name"],
        "card": card_of_name.get(row["name"]),
        "cells": cells,
        "reference": row.get("reference", ""),
    }


# ---- summary ----


def _paired(rows: pd.DataFrame, key: str) -> pd.DataFrame:
    """Values before and after of the pairs that have both; columns `before` and `after`."""
    both = rows[[key + _BEFORE, key]].dropna()
    return both.set_axis(["before", "after"], axis=1)


def _improved(paired: pd.DataFrame, better: int) -> pd.Series:
    return (paired["after"] - paired["before"]) * better > 0


def _tiles(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict]:
    """The few figures a reader looks for first."""
    tiles = []
    for key in ("epe", "rmse", "ssim", "ncc"):
        if key not in columns or key + _BEFORE not in columns:
            continue
        metric, paired = METRICS[key], _paired(rows, key)
        if paired.empty:
            continue
        good = int(_improved(paired, metric.better).sum())
        tiles.append(
            {
                "metric": metric,
                "before": _format(paired["before"].mean(), metric.digits),
                "value": _format(paired["after"].mean(), metric.digits),
                "detail": f"{good} of {len(paired)} pairs better than before",
            }
        )
    for key in ("disagreement", "qabf", "qvif", "folding", "seconds"):
        if key not in columns:
            continue
        metric, values = METRICS[key], rows[key].dropna()
        detail = f"{_format(values.min(), metric.digits)} to {_format(values.max(), metric.digits)}"
        if key == "disagreement":
            doubtful = int((values > DOUBTFUL).sum())
            detail = f"{doubtful} of {len(values)} pairs above {DOUBTFUL:g}{': look closely' if doubtful else ''}"
        tiles.append(
            {"metric": metric, "before": "", "value": _format(values.mean(), metric.digits), "detail": detail}
        )
    return tiles


def _facts(row: pd.Series, columns: Sequence[str]) -> list[dict]:
    """The figures that stand above the images of one pair."""
    facts = []
    for key in _CARD_METRICS:
        if key not in columns or pd.isna(row[key]):
            continue
        metric, value = METRICS[key], float(row[key])
        fact = {"metric": metric, "before": "", "value": _format(value, metric.digits), "verdict": ""}
        before = row.get(key + _BEFORE, math.nan)
        if pd.notna(before):
            fact["before"] = _format(float(before), metric.digits)
            gain = (value - float(before)) * metric.better
            fact["verdict"] = "better" if gain > 0 else "worse" if gain < 0 else ""
        elif key == "disagreement" and value > DOUBTFUL:
            fact["verdict"] = "doubtful"
        facts.append(fact)
    return facts


# ---- distribution plots ----

_WIDTH, _LEFT, _RIGHT = 300, 12, 288


def _charts(rows: pd.DataFrame, columns: Sequence[str]) -> list[dict]:
    """One plot a metric, of before and after where both exist. Constant columns need no plot."""
    charts = []
    for column in columns:
        if column.endswith(_BEFORE) and _key(column) in columns:
            continue
        metric, values = _metric(column), rows[column].dropna()
        digits = metric.digits
        chart = {
            "column": column,
            "metric": metric,
            "detail": f"mean {_format(values.mean(), digits)}, sd {_format(values.std(ddof=1), digits)}",
        }
        if column + _BEFORE in columns and not (paired := _paired(rows, column)).empty:
            good = int(_improved(paired, metric.better).sum())
            chart["detail"] = (
                f"{_format(paired['before'].mean(), digits)} → {_format(paired['after'].mean(), digits)}, "
                f"{good} of {len(paired)} better"
            )
            chart["svg"] = _paired_plot(paired, metric.better)
        elif values.nunique() > 1:
            chart["svg"] = _strip_plot(values)
        else:
            continue
        charts.append(chart)
    return charts


def _axis(low: float, high: float, y: float) -> tuple[np.ndarray, list[str]]:
    """Ends of the axis, and its ticks and labels as SVG."""
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
        parts.append(f'<text x="{x:.1f}" y="{y + 15}" text-anchor="middle">{_format(tick, digits)}</text>')
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


def _strip_plot(values: pd.Series) -> Markup:
    """A dot a pair, stacked so that none hides another, over the range of the middle half and the median."""
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
    """Before above, after below, a line a pair; pairs that got worse stand out."""
    above, below, floor = 20.0, 62.0, 78
    ends, axis = _axis(paired.min(axis=None), paired.max(axis=None), floor)
    x_before, x_after = _to_x(paired["before"], ends), _to_x(paired["after"], ends)
    good, radius = _improved(paired, better), _radius(len(paired))
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


def _svg(height: int, parts: Iterable[str]) -> Markup:
    # Everything inside is made of numbers and fixed words, so nothing needs to be escaped.
    return Markup(f'<svg viewBox="0 0 {_WIDTH} {height}" aria-hidden="true">{"".join(parts)}</svg>')


# ---- images ----


def _views(pair: PairImages) -> list[tuple[str, np.ndarray]]:
    views = [("Fused", pair.fused), ("Fixed", pair.fixed), ("Moving", pair.moving), ("Aligned", pair.aligned)]
    if pair.label is not None:
        views.append(("Label", pair.label))
    return views + [(str(name), image) for name, image in pair.extra.items()]


def _encode(image: np.ndarray, how: Encoding) -> str:
    """An image as a WebP data URI; values outside [0, 1] are clipped, non-finite ones are black."""
    levels = np.rint(np.clip(np.nan_to_num(image, posinf=1.0, neginf=0.0), 0.0, 1.0) * 255).astype(np.uint8)
    picture = Image.fromarray(levels)
    if how.side is not None:
        picture.thumbnail((how.side, how.side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=how.quality is None, quality=how.quality or 50, method=3)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _encode_pair(pair: PairImages, how: Encoding) -> list[tuple[str, str]]:
    """View -> data URI of each image, once it is known that they go together."""
    _check_pair(pair)
    return [(view, _encode(image, how)) for view, image in _views(pair)]


def _spread(items: Sequence, count: int) -> Iterator:
    """At most `count` evenly spaced items, one by one: a sequence may read each from its file as it is asked for."""
    if len(items) <= count:
        return iter(items)
    return (items[index] for index in np.linspace(0, len(items) - 1, count).round().astype(int))


def _length(encoded: Iterable[tuple[str, str]]) -> int:
    return sum(len(uri) for _, uri in encoded)


def _choose(pairs: Sequence[PairImages], budget: int) -> tuple[Encoding, float]:
    """First step of the ladder that fits the budget, judged from a few pairs; and its bytes a pair."""
    sample = list(_spread(pairs, 6))
    for how in LADDER:
        # A tenth more than the mean of the sample, because the pairs that were not looked at may be larger.
        each = 1.1 * sum(_length(_encode_pair(pair, how)) for pair in sample) / len(sample)
        if each * len(pairs) <= budget:
            break
    return how, each


def _cards(pairs: Sequence[PairImages], budget: int) -> tuple[list[dict], Encoding, int]:
    """The pairs that are pictured, how their images are embedded, and how many are left out for size."""
    if not pairs:
        return [], LADDER[0], 0
    how, each = _choose(pairs, budget)
    cards: list[dict] = []
    for pair in _spread(pairs, max(0, int(budget // each))):
        encoded = _encode_pair(pair, how)
        budget -= _length(encoded)
        if budget < 0:
            break
        height, width = np.shape(pair.fixed)[:2]
        cards.append(
            {
                "name": str(pair.name),
                "width": width,
                "height": height,
                "views": [view for view, _ in encoded],
                "images": [uri for _, uri in encoded],
            }
        )
    return cards, how, len(pairs) - len(cards)
