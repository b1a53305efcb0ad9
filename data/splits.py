"""Tables of pairs made from a folder of aligned pairs.

The folder has the layout in which the Harvard Whole Brain Atlas is passed on: ``DIR/CT-MRI/MRI/NAME.png`` and
``DIR/CT-MRI/CT/NAME.png``, likewise for PET and SPECT; or, for one modality, ``DIR/MRI`` and ``DIR/CT``.

The table is a CSV file with a row a pair and the columns ``fixed, moving`` (paths relative to DIR), ``modality``,
``group`` (the patient) and ``split`` (train or val). Slices of one patient look alike, so the split is drawn by
patient, and a case number that occurs under several modalities counts as one patient. A file ``split.csv`` beside a
modality's folders is taken in its place.
"""

import argparse
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd

from data.table import MODALITIES, DataError, as_choice, check_choice, read_csv, read_table
from utils.files import lacking
from utils.imaging.pairing import pair_files, plain_stem

GROUP_PATTERN = r"(.+)[0-9]{3}"
"""Harvard names are the case number and three digits of slice number: 16003 is slice 3 of case 16."""


def make_table(
    root: str | os.PathLike,
    modality: str = "all",
    *,
    ratio: float = 0.8,
    seed: int = 0,
    group_pattern: str = GROUP_PATTERN,
    split_csv: str | os.PathLike | None = None,
    draw_others: bool = False,
) -> pd.DataFrame:
    """List the pairs below a folder and split them by patient.

    Args:
        root: folder of aligned pairs, see the module's description.
        modality: CT, PET, SPECT or all, which is those of the folders CT-MRI, PET-MRI and SPECT-MRI that are there. A
            patient's side hangs on all of them, whichever are asked for: what was validated on with all modalities is
            not trained on with one. They are read only where a split is to be drawn.
        ratio: share of each modality's slices that goes to ``train``, 0 to 1; met only about, as patients stay whole.
        seed: of the draw; the same folder, ratio and seed give the same table on every machine.
        group_pattern: regular expression that a whole stem must match for the split to be drawn; its first group, or
            the whole match where it has none, is the patient. Where a split is given, a stem that it does not match
            stands for a patient of its own.
        split_csv: a file with the columns ``split, name`` to take the split from instead of drawing it. Looked for
            beside each modality's folders (``root/CT-MRI/split.csv``) first, then as a path.
        draw_others: look for that file beside the folders only, and draw the split of modalities without one.

    Returns:
        Columns fixed, moving, modality, group, split; strings; in natural order of the names.

    Raises:
        DataError: unknown modality, ratio outside [0, 1], a name that the pattern does not match, a single patient
            that cannot be split, or a split file that does not fit the folder.
        FileError: folders are missing or empty, or images without a partner.
    """
    if modality not in (*MODALITIES, "all"):
        raise DataError(f"modality: expected one of {', '.join(MODALITIES)}, all, found {modality!r}")
    if not 0 <= ratio <= 1:
        raise DataError(f"ratio: expected 0 to 1, found {ratio}")
    pattern = _pattern(group_pattern)
    root = Path(root)
    modalities = _modalities_in(root) if modality == "all" else [modality]
    parts = {name: _pairs_of(root, name, pattern, split_csv, draw_others) for name in modalities}
    if any((part["split"] == "").any() for part in parts.values()) and (root / f"{modalities[0]}-MRI").is_dir():
        # One patient is on one side whatever is asked for, so all that is there is split.
        others = set(_modalities_in(root)) - set(modalities)
        parts |= {name: _pairs_of(root, name, pattern, split_csv, draw_others=True) for name in others}
    table = pd.concat([parts[name] for name in MODALITIES if name in parts], ignore_index=True)
    drawn = table["split"] == ""
    known = table[~drawn].groupby("group")["split"].agg(lambda splits: splits.mode()[0])
    table.loc[drawn, "split"] = _draw_split(table[drawn], ratio, seed, known.to_dict())
    for name in modalities if 0 < ratio < 1 else ():
        part = table[drawn & (table["modality"] == name)]
        if part["group"].nunique() == 1:
            single = f"one ({part['group'].iloc[0]}); is the group pattern right?"
            raise DataError.at(name, "two patients or more to split by", single)
    return table[table["modality"].isin(modalities)].reset_index(drop=True)


def _pattern(group_pattern: str) -> re.Pattern:
    """Compile the pattern.

    Raises:
        DataError: it is no regular expression.
    """
    try:
        return re.compile(group_pattern)
    except re.error as error:
        raise DataError(f"group pattern: expected a regular expression, found {group_pattern!r} ({error})") from error


def _pairs_of(
    root: Path, modality: str, pattern: re.Pattern, split_csv: str | os.PathLike | None, draw_others: bool
) -> pd.DataFrame:
    """List the rows of one modality for `make_table`. The split stays empty until it is drawn."""
    folder = root / f"{modality}-MRI"
    if not folder.is_dir() and (root / "MRI").is_dir():
        folder = root
    rows = []
    for pair in pair_files(fixed=folder / "MRI", moving=folder / modality):
        for role in ("fixed", "moving"):
            if not pair[role].is_file():
                raise DataError.at(pair[role], "an image file", f"{lacking(pair[role])}")
        match = pattern.fullmatch(pair["name"])
        paths = {role: pair[role].relative_to(root).as_posix() for role in ("fixed", "moving")}
        rows.append({**paths, "modality": modality, "group": match and match[match.re.groups and 1], "split": ""})
    table = pd.DataFrame(rows)
    beside = None if split_csv is None else folder / split_csv
    unnamed = table["group"].isna()
    if beside and (beside.is_file() or not draw_others):
        table["split"] = _given_split(table, beside if beside.is_file() else Path(split_csv))
    elif unnamed.any():
        path = root / table.loc[unnamed, "fixed"].iloc[0]
        expected = f"a name that matches the group pattern {pattern.pattern} (--group-pattern) and so tells the patient"
        raise DataError.at(path, expected, repr(path.stem))
    table.loc[unnamed, "group"] = [Path(path).stem for path in table.loc[unnamed, "fixed"]]
    return table


def find_table(
    root: str | os.PathLike,
    modality: str = "all",
    *,
    csv: str | os.PathLike | None = None,
    split: str | None = None,
    group_pattern: str = GROUP_PATTERN,
) -> pd.DataFrame:
    """List the pairs below a folder with their split, for training and for known deformations.

    Args:
        root: folder of aligned pairs, see the module's description.
        modality: CT, PET, SPECT or all.
        csv: table to take them from; by default they are listed and split as ``split.csv`` beside the folders of a
            modality says, or else by patient.
        split: keep only rows of this one; None keeps all.
        group_pattern: which names are one patient's, as in `make_table`.

    Returns:
        As `read_table` or `make_table`, with the columns ``modality`` and ``split``.

    Raises:
        DataError: as those, for a table without these columns, and where no row is of the split that is wanted.
    """
    if csv is None:
        table = make_table(root, modality, group_pattern=group_pattern, split_csv="split.csv", draw_others=True)
    else:
        table = read_table(csv, root, modality=modality)
    for column in ("modality", "split"):
        if column not in table:
            raise DataError.at(csv, f"a column {column}", f"columns {', '.join(table.columns)}")
    if split is None:
        return table
    table = table[table["split"] == split].reset_index(drop=True)
    if table.empty:
        raise DataError.at(csv or root, f"pairs of the split {split}", "none")
    return table


def patients_of(table: pd.DataFrame, group_pattern: str = GROUP_PATTERN) -> list[str]:
    """Return the patient of each row of a table: its column group, or else what the pattern finds in the name.

    Args:
        table: of `data.table.read_table`.
        group_pattern: as in `make_table`. A name that it does not match stands for a patient of its own.

    Raises:
        DataError: the pattern is no regular expression.
    """
    if "group" in table:
        return list(table["group"])
    pattern = _pattern(group_pattern)
    matches = [(name, pattern.fullmatch(name)) for name in table["name"]]
    return [match[pattern.groups and 1] if match else name for name, match in matches]


def shared_patients(table: pd.DataFrame) -> int:
    """Count the patients of a table (columns group and split) with slices in both train and val."""
    return int(table[table["split"].isin(["train", "val"])].groupby("group")["split"].nunique().gt(1).sum())


def _modalities_in(root: Path) -> list[str]:
    """List the modalities that have a folder below the root."""
    modalities = [name for name in MODALITIES if (root / f"{name}-MRI").exists()]
    if not modalities:
        expected = f"one or more of the folders {', '.join(f'{name}-MRI' for name in MODALITIES)}"
        content = "none of them" if root.is_dir() else f"{lacking(root) or 'a file'}"
        single = f"; for {root / 'MRI'} give one --modality" if (root / "MRI").is_dir() else ""
        raise DataError.at(root, expected, content + single)
    return modalities


def _draw_split(table: pd.DataFrame, ratio: float, seed: int, known: dict[str, str]) -> list[str]:
    """Choose train or val for each row.

    Patients in random order go to val as long as that brings it nearer its share.

    Args:
        known: patient -> split, where that is known already.
    """
    split = dict(known)
    generator = np.random.default_rng(seed)
    for _, part in table.groupby("modality", sort=False):
        sizes = part["group"].value_counts()
        groups = sorted(sizes.index)
        # Patients that are placed already, by what was given or by another modality, stay where they are.
        val = sum(sizes[g] for g in groups if split.get(g) == "val")
        target = (1 - ratio) * len(part)
        order = [groups[i] for i in generator.permutation(len(groups)) if groups[i] not in split]
        for group in order:
            nearer = abs(val + sizes[group] - target) < abs(val - target)
            split[group] = "val" if nearer else "train"
            val += sizes[group] if nearer else 0
        sides = {split[g] for g in groups}
        if len(sides) == 1 and 0 < ratio < 1 and order:
            # A ratio near 0 or 1 must leave neither side without a patient.
            split[min(order, key=sizes.get)] = "train" if sides == {"val"} else "val"
    return [split[group] for group in table["group"]]


def _given_split(part: pd.DataFrame, path: Path) -> list[str]:
    """Read the split of each row from a file with the columns split and name."""
    rows = read_csv(path, ("split", "name"))
    splits: dict[str, str] = {}
    for line, (split, name) in rows[["split", "name"]].iterrows():
        split = as_choice(split, "split")
        check_choice(path, line, "split", split)
        stem = plain_stem(name)
        if splits.setdefault(stem, split) != split:
            raise DataError.at(path, "one split a name", f"{name} in {splits[stem]} and {split}")
    stems = [plain_stem(fixed) for fixed in part["fixed"]]
    missing = [stem for stem in stems if stem not in splits]
    if missing:
        raise DataError.at(path, "a row for each pair", f"none for {len(missing)}, such as {missing[0]}")
    return [splits[stem] for stem in stems]


def add_group_pattern(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option --group-pattern, for all commands that split pairs by patient."""
    parser.add_argument("--group-pattern", default=GROUP_PATTERN, metavar="REGEX",
                        help="regular expression for file names; its first group is the patient (default: %(default)s)")
