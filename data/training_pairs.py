"""The pairs of a training run: where they lie, which of them it trains on and which it validates on."""

import hashlib
import itertools
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from data.dataset import VAL_SEED, PairDataset, balance
from data.simulated_heads import LabelledHeads
from data.splits import GROUP_PATTERN, find_table, shared_patients
from data.table import MODALITIES, SPLITS, DataError
from utils.files import FileError
from utils.messages import counted


class TrainingPairs(NamedTuple):
    """Pairs to train on and to validate on; one and the same data set where a few pairs are overfitted."""

    train: PairDataset
    val: PairDataset

    def check(self) -> None:
        """Read all images.

        Raises:
            FileError: one of them cannot be used.
        """
        for pairs in self:
            pairs.check()


def load_table(
    roots: Sequence[str], modality: str, *, csv: str | None = None, group_pattern: str = GROUP_PATTERN
) -> tuple[pd.DataFrame, str]:
    """List the pairs of all folders with their split.

    Args:
        roots: folders of aligned pairs.
        modality: CT, PET, SPECT or all.
        csv: table to take the pairs from instead; its paths start from the only root.
        group_pattern: which names are one patient's, see `data.splits.make_table`.

    Returns:
        The table, paths included, with a column number (`number_pairs`), and its number of pairs with a digest. The
        digest does not depend on where the folders lie nor on the operating system.

    Raises:
        DataError: several roots with one table, or as `find_table`.
        FileError: as `find_table`.
    """
    if csv and len(roots) > 1:
        raise DataError.at(csv, "one --root with it", " ".join(roots))
    tables, of_all, digest = [], [], hashlib.sha256()
    for root in roots:
        table = find_table(root, modality, csv=csv, group_pattern=group_pattern)
        # The same under every system: a run may go on under another.
        text = table[["fixed", "moving", "modality", "split"]].to_csv(index=False, lineterminator="\n")
        digest.update(text.replace(os.sep, "/").encode())
        everything = table.copy()
        if modality != "all":
            with suppress(FileError):  # a folder of one modality, or pairs of others that cannot be used
                everything = find_table(root, "all", csv=csv, group_pattern=group_pattern)
        tables.append(_below(root, table))
        of_all.append(_below(root, everything))
    table = number_pairs(pd.concat(tables, ignore_index=True), pd.concat(of_all, ignore_index=True))
    return table, f"{len(table)} pairs ({digest.hexdigest()[:8]})"


def _below(root: str, table: pd.DataFrame) -> pd.DataFrame:
    """Put the folder before the paths of a table, and before the patients: two folders may use one name for two."""
    for column in ("fixed", "moving", *({"group"} & set(table))):
        table[column] = [str(Path(root, value)) for value in table[column]]
    return table


def number_pairs(table: pd.DataFrame, everything: pd.DataFrame) -> pd.DataFrame:
    """Number the pairs of each split, so that a pair has one number whichever modalities are chosen.

    The number decides what is drawn for a pair that is validated on.

    Args:
        table: of `load_table`, of the chosen modalities.
        everything: the same of all modalities.

    Returns:
        The table with a column number: the place among all pairs of the same split, from 0. Pairs that `everything`
        has not, or in another split, come after.
    """
    keys = ["split", "modality", "fixed", "moving"]
    places = everything.groupby("split").cumcount()
    known = dict(zip(everything[keys].itertuples(index=False, name=None), places, strict=True))
    free = {split: itertools.count(count) for split, count in everything["split"].value_counts().items()}
    numbers = [known[key] if key in known else next(free.setdefault(key[0], itertools.count()))
               for key in table[keys].itertuples(index=False, name=None)]  # fmt: skip
    return table.assign(number=numbers)


def validation_table(
    root: str, modality: str, *, csv: str | None = None, group_pattern: str = GROUP_PATTERN
) -> pd.DataFrame:
    """List the validation pairs as `load_table` numbers them.

    Raises:
        DataError: there are none, or as `load_table`.
        FileError: as `load_table`.
    """
    table, _ = load_table([root], modality, csv=csv, group_pattern=group_pattern)
    table = table[table["split"] == "val"].reset_index(drop=True)
    if table.empty:
        raise DataError.at(csv or root, "pairs of the split val", "none")
    return table


def build_datasets(
    table: pd.DataFrame,
    place: str,
    *,
    seed: int = 0,
    wide: float = 0.5,
    overfit: int | None = None,
    simulated: float = 0.0,
    heads: str | None = None,
    repeat_after: int | None = None,
) -> TrainingPairs:
    """Choose the pairs to train on, equally many of each modality, and those to validate on.

    Args:
        table: of `load_table`.
        place: file or folder that errors name.
        seed: of the training's draws.
        wide: share of the training pairs with large deformations.
        overfit: number of pairs to train and validate on, with one fixed deformation each; None follows the split.
        simulated: share of the training pairs that show simulated heads.
        heads: folder of labelled heads to simulate on; None draws random shapes.
        repeat_after: epochs whose draws are shown again and again; None draws anew always.

    Raises:
        DataError: too few pairs, or none of one split.
        FileError: the labelled heads cannot be read.
    """
    if overfit:
        if overfit > len(table):
            raise DataError.at(place, f"{overfit} pairs to overfit", f"{len(table)}")
        # In turn from each modality.
        few = table.iloc[table.groupby("modality").cumcount().argsort(kind="stable")[:overfit]]
        pairs = PairDataset(few.drop(columns="number", errors="ignore"), ".", seed=VAL_SEED)
        return TrainingPairs(pairs, pairs)
    train, val = (table[table["split"] == split] for split in ("train", "val"))
    if train.empty or val.empty:
        counts = ", ".join(f"{(table['split'] == split).sum()} {split}" for split in SPLITS)
        lacking = "val" if val.empty else "train"
        advice = f"--root takes several folders: add one with pairs of the split {lacking}"
        raise DataError.at(place, "pairs of the splits train and val", f"{counts}; {advice}")
    labelled = LabelledHeads(heads, without=_validated_only(train, val)) if heads else None
    return TrainingPairs(
        PairDataset(
            balance(train, seed), ".", seed=seed, augment=True, wide=wide, simulated=simulated, heads=labelled,
            repeat_after=repeat_after,
        ),  # fmt: skip
        PairDataset(val, ".", seed=VAL_SEED),
    )


def _validated_only(train: pd.DataFrame, val: pd.DataFrame) -> set[str]:
    """Name the patients that are validated on and not trained on, so that no simulated head shows them either."""
    if "group" not in train:
        return set()
    names = [{Path(group).name for group in table["group"]} for table in (val, train)]
    return names[0] - names[1]


def describe(pairs: TrainingPairs, table: pd.DataFrame) -> tuple[str, list[str]]:
    """Say how many pairs there are, and what the validation on them cannot tell.

    Returns:
        One line, and a line for each limit of the validation.
    """
    train, val = pairs
    names = ", ".join(MODALITIES[index] for index in sorted(set(train.modalities)))
    limits = [
        f"{MODALITIES[index]}: no pairs to validate on, so the best checkpoint is chosen without it"
        for index in sorted(set(train.modalities) - set(val.modalities))
    ]
    if train is not val and "group" in table and (shared := shared_patients(table)):
        patients = counted(shared, "patient")
        limits.append(f"{patients} with slices both to train and to validate on: validation flatters")
    return f"{len(train)} pairs an epoch ({names}), {len(val)} to validate on", limits
