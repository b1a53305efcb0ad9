"""Folds by patient: every patient is validated on once, and never by a network that was trained on the same head."""

import os
from pathlib import Path

import pandas as pd

from data.table import DataError, read_csv

FOLDS = Path(__file__).with_name("folds.csv")
"""The folds of the Harvard pairs, by names: columns modality, name, group (the patient) and fold (from 1)."""


def make_folds(table: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """Divide patients among folds so that every fold has about as many pairs of every modality.

    The largest patients come first, each to the fold that is the emptiest for its modalities. Nothing is random.

    Args:
        table: rows with the columns fixed, modality and group, as of `data.splits.find_table`.
        count: of folds.

    Returns:
        Columns modality, name, group and fold, a row a pair.

    Raises:
        DataError: a modality has fewer patients than there are folds.
    """
    sizes = table.groupby(["group", "modality"]).size().unstack(fill_value=0)
    for modality in sizes:
        if (patients := int((sizes[modality] > 0).sum())) < count:
            raise DataError.at(modality, f"{count} patients or more, one a fold", f"{patients}")
    shares = sizes / sizes.sum()
    filled = pd.DataFrame(0.0, index=range(1, count + 1), columns=sizes.columns)
    fold: dict[str, int] = {}
    for group in shares.max(axis=1).sort_values(ascending=False, kind="stable").index:
        cost = {k: ((filled.loc[k] + shares.loc[group]) ** 2 - filled.loc[k] ** 2).sum() for k in filled.index}
        fold[group] = min(cost, key=cost.get)
        filled.loc[fold[group]] += shares.loc[group]
    rows = table[["modality", "group"]].assign(
        name=[Path(path).stem for path in table["fixed"]], fold=table["group"].map(fold)
    )
    return rows[["modality", "name", "group", "fold"]].reset_index(drop=True)


def read_folds(path: str | os.PathLike = FOLDS) -> pd.DataFrame:
    """Read a table of folds.

    Returns:
        Columns modality, name, group (strings) and fold (int).

    Raises:
        DataError: a column is missing, a fold is no number from 1, or a patient stands in two folds.
    """
    table = read_csv(path, ("modality", "name", "group", "fold"))
    if wrong := sorted({value for value in table["fold"] if not value.isdigit() or value == "0"}):
        raise DataError.at(path, "numbers from 1 as folds", repr(wrong[0]))
    table["fold"] = table["fold"].astype(int)
    twice = table.groupby("group")["fold"].nunique()
    if (twice > 1).any():
        raise DataError.at(path, "every patient in one fold", f"{twice[twice > 1].index[0]} in {twice.max()}")
    return table[["modality", "name", "group", "fold"]].reset_index(drop=True)


def split_by_fold(table: pd.DataFrame, folds: pd.DataFrame, fold: int) -> pd.DataFrame:
    """Mark one fold for validation and the others for training.

    Args:
        table: rows with the columns fixed and modality.
        folds: of `read_folds` or `make_folds`.
        fold: number of the fold to leave out of training.

    Returns:
        The table with the columns group and split as the folds say.

    Raises:
        DataError: no such fold, or a pair that the folds do not name.
    """
    if fold not in set(folds["fold"]):
        raise DataError.at(FOLDS.name, f"a fold from 1 to {folds['fold'].max()}", str(fold))
    known = {(row.modality, row.name): row for row in folds.itertuples(index=False)}
    keys = [(m, Path(path).stem) for m, path in zip(table["modality"], table["fixed"], strict=True)]
    if missing := [key for key in keys if key not in known]:
        example = " ".join(missing[0])
        raise DataError.at(FOLDS.name, "a fold for each pair", f"none for {len(missing)}, such as {example}")
    rows = [known[key] for key in keys]
    return table.assign(
        group=[row.group for row in rows], split=["val" if row.fold == fold else "train" for row in rows]
    )
