"""The table of a page: a row a pair, columns in groups, the best value of each marked."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from evaluation.report.columns import BEFORE, metric_of, written


def groups_of(columns: Iterable[str]) -> list[tuple[str, int]]:
    """Headlines over neighbouring columns: what they are about, and how many they are."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        name = metric_of(column).group
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    return groups


def headers_of(columns: Sequence[str]) -> list[dict]:
    """What the template needs for the head of each column."""
    previous = [None, *(metric_of(column).group for column in columns)]
    return [
        {
            "column": column,
            "metric": metric_of(column),
            "before": column.endswith(BEFORE),
            "when": "before" if column.endswith(BEFORE) else "after" if column + BEFORE in columns else "",
            "starts_group": metric_of(column).group != before,
        }
        for column, before in zip(columns, previous, strict=False)
    ]


def cells_of(row: pd.Series, columns: Sequence[str]) -> list[dict]:
    """What the template needs for each cell of a row: the value to sort by, and its text."""
    values = [float(pd.to_numeric(row.get(column, math.nan), errors="coerce")) for column in columns]
    return [
        {"value": repr(value) if math.isfinite(value) else "", "text": written(value, metric_of(column).digits)}
        for value, column in zip(values, columns, strict=True)
    ]


def row_of(row: pd.Series, rows: pd.DataFrame, columns: Sequence[str], card_of_name: Mapping[str, int]) -> dict:
    """What the template needs for a pair's row: its cells, the best of all `rows` marked, and the card of images."""
    cells = cells_of(row, columns)
    for cell, column in zip(cells, columns, strict=True):
        better = 0 if column.endswith(BEFORE) else metric_of(column).better
        extreme = rows[column].max() if better > 0 else rows[column].min()
        cell["best"] = better != 0 and rows[column].nunique() > 1 and row[column] == extreme
    return {
        "name": row["name"],
        "card": card_of_name.get(row["name"]),
        "cells": cells,
        "reference": row.get("reference", ""),
    }

