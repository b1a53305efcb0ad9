"""The page above the reports of several modalities, with the means of each."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from evaluation.report.columns import BEFORE_SUFFIX, METRICS, format_value, metric_of, shown_columns
from evaluation.report.page import template_of
from utils.files import write_bytes


def write_index(
    path: str | os.PathLike,
    tables: Mapping[str, pd.DataFrame],
    title: str,
    notes: Mapping[str, object] | None = None,
    earlier: Collection[str] = (),
) -> None:
    """Write the index; the file appears whole or not at all.

    Args:
        path: the HTML file, in the folder that has a folder with report.html for each modality.
        tables: modality -> metrics.csv, without the row `mean`.
        title: headline and title of the page.
        notes: facts about the last run, shown under the headline.
        earlier: modalities that the notes do not hold for, as an earlier run made them.

    Raises:
        FileError: the file cannot be written.
    """
    columns = {modality: shown_columns(table) for modality, table in tables.items()}
    present = {column for shown in columns.values() for column in shown}
    further = sorted(column for column in present if column.removesuffix(BEFORE_SUFFIX) not in METRICS)
    rows = []
    for column in [key for key in (*METRICS, *further) if key in present]:
        cells = []
        for table in tables.values():
            means = [table[key].mean() for key in (column + BEFORE_SUFFIX, column) if key in table]
            cells.append(" → ".join(format_value(x, metric_of(column).digits) for x in means if pd.notna(x)) or "–")
        rows.append({"metric": metric_of(column), "cells": cells})
    reports = [
        {"modality": name, "pairs": len(table), "path": f"{name}/report.html", "earlier": name in earlier}
        for name, table in tables.items()
    ]
    page = template_of("index.html").render(
        title=title,
        notes={str(key): str(value) for key, value in (notes or {}).items()},
        reports=reports,
        rows=rows,
        references={name: _references(table) for name, table in tables.items()},
    )
    write_bytes(Path(path), page.encode("utf-8"))


def _references(table: pd.DataFrame) -> str:
    """Describe what the fused images of a table are scored against."""
    references = table["reference"].dropna().astype(str).unique() if "reference" in table else []
    return " or ".join(references) or "–"
