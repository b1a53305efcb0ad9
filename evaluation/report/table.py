"""The table of a page: a row a pair, columns in groups, the best value of each marked."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from evaluation.report.columns import BEFORE_SUFFIX, format_value, metric_of


def groups_of(columns: Iterable[str]) -> list[tuple[str, int]]:
    """Group neighbouring columns: return what they are about and how many they are."""
    groups: list[tuple[str, int]] = []
    for column in columns:
        name = metric_of(column).group
        if groups and groups[-1][0] == name:
            groups[-1] = (name, groups[-1][1] + 1)
        else:
            groups.append((name, 1))
    return groups


def headers_of(columns: Sequence[str]) -> list[dict]:
    """Make the fields of each column's head for the template."""
    previous = [None, *(metric_of(column).group for column in columns)]
    headers = []
    for column, group_before in zip(columns, previous, strict=False):
        before = column.endswith(BEFORE_SUFFIX)
        has_before = column + BEFORE_SUFFIX in columns
        headers.append(
            {
                "column": column,
                "metric": metric_of(column),
                "before": before,
                "when": "before" if before else "after" if has_before else "",
                "starts_group": metric_of(column).group != group_before,
            }
        )
    return headers


def cells_of(row: pd.Series, columns: Sequence[str]) -> list[dict]:
    """Make the fields of a row's cells for the template: the value to sort by, and its text."""
    values = [float(pd.to_numeric(row.get(column, math.nan), errors="coerce")) for column in columns]
    return [
        {"value": repr(value) if math.isfinite(value) else "", "text": format_value(value, metric_of(column).digits)}
        for value, column in zip(values, columns, strict=True)
    ]


def row_of(row: pd.Series, rows: pd.DataFrame, columns: Sequence[str], card_of_name: Mapping[str, int]) -> dict:
    """Make the fields of a pair's row: its cells, the best of all `rows` marked, and the card of images."""
    cells = cells_of(row, columns)
    for cell, column in zip(cells, columns, strict=True):
        better = 0 if column.endswith(BEFORE_SUFFIX) else metric_of(column).better
        extreme = rows[column].max() if better > 0 else rows[column].min()
        cell["best"] = better != 0 and rows[column].nunique() > 1 and row[column] == extreme
    return {
        "name": row["name"],
        "card": card_of_name.get(row["name"]),
        "cells": cells,
        "reference": row.get("reference", ""),
    }

