"""`report.html`: one self-contained page with the metrics of a run, their distributions, and the images.

The page needs no network and no other file. Its markup, style and script stand in `template.html`, `style.css` and
`script.js`; what depends on the data is computed by the modules beside this one. A page takes at most
`pictures.PAGE_BUDGET` bytes; where not all pairs can be pictured, it says so. The table always has every pair.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from evaluation.report.columns import METRICS, key_of, shown_columns
from evaluation.report.pictures import LADDER, ColorScale, PairImages, cards_of
from evaluation.report.plots import charts_of
from evaluation.report.summary import facts_of, tiles_of
from evaluation.report.table import cells_of, groups_of, headers_of, row_of
from utils.files import write_bytes


def write_report(
    path: str | os.PathLike,
    table: pd.DataFrame,
    pairs: Sequence[PairImages],
    title: str,
    notes: Mapping[str, object] | None = None,
    scales: Mapping[str, ColorScale] | None = None,
    index: str | None = None,
) -> None:
    """Write the report; the file appears whole or not at all.

    Args:
        path: the HTML file; missing folders are made.
        table: metrics.csv: a column `name`, columns of `METRICS`, their `..._before`, `reference`, any more.
            A last row named `mean` is kept at the bottom; without one the means are computed. Empty columns
            (no label was given) are left out.
        pairs: images by pair, matched with the table by name. May be empty or fewer than the rows.
        title: headline and title of the page.
        notes: facts about the run (date, command, checkpoint, device, versions), shown under the headline.
        scales: name of an image in `extra` -> what its colours stand for.
        index: relative path of the page that lists the reports, to link to.

    Raises:
        ValueError: the table has no column `name` or no row, or a pair's images do not go together.
    """
    rows, means = _rows_and_means(path, table)
    columns = shown_columns(rows)
    cards, encoding, omitted = cards_of(pairs, len(rows))
    card_of_name = {card["name"]: place for place, card in reversed(list(enumerate(cards)))}
    row_of_name = {name: place for place, name in reversed(list(enumerate(rows["name"])))}
    for card in cards:
        card["row"] = row = row_of_name.get(card["name"])
        card["facts"] = [] if row is None else facts_of(rows.iloc[row], columns)
    tiles = tiles_of(rows, columns)
    references = rows["reference"].dropna().astype(str).unique() if "reference" in rows else []
    page = template_of("template.html").render(
        title=title,
        notes={str(key): str(value) for key, value in (notes or {}).items()},
        tiles=tiles,
        tiles_across=len(tiles) + 1 if len(tiles) < 5 else math.ceil((len(tiles) + 1) / 2),
        groups=groups_of(columns),
        headers=headers_of(columns),
        references=list(references),
        show_reference=len(references) > 1,
        rows=[row_of(row, rows, columns, card_of_name) for _, row in rows.iterrows()],
        means=cells_of(rows[columns].mean() if means is None else means, columns),
        legend=[METRICS[key] for key in dict.fromkeys(map(key_of, columns)) if key in METRICS],
        charts=charts_of(rows, columns),
        cards=cards,
        encoding=str(encoding),
        reduced=encoding != LADDER[0],
        omitted=omitted,
        total=len(pairs),
        scales={name: scale._asdict() for name, scale in (scales or {}).items()},
        index=index,
    )
    write_bytes(path, page.encode("utf-8"))


def _rows_and_means(path: str | os.PathLike, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series | None]:
    """Divide a table into the rows of pairs and its last row, if that is `mean`.

    Raises:
        ValueError: the table has no column `name`, or no row of a pair.
    """
    if "name" not in table.columns:
        columns = ", ".join(map(str, table.columns)) or "no column"
        raise ValueError(f"{path}: expected a table with the column 'name', found {columns}")
    table = table.assign(name=table["name"].astype(str)).reset_index(drop=True)
    has_mean = len(table) > 0 and table["name"].iloc[-1] == "mean"
    rows = table.iloc[:-1] if has_mean else table
    if rows.empty:
        raise ValueError(f"{path}: expected a table with at least one pair, found {len(table)} row(s)")
    return rows, table.iloc[-1] if has_mean else None


def template_of(name: str) -> Template:
    """Load the template of this name beside this module; values that fill it are escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    settings = {"autoescape": True, "undefined": StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return Environment(loader=loader, **settings).get_template(name)
