"""Read tables of pairs and check them.

A table is a CSV file with one row per pair. The columns ``fixed`` and ``moving`` are paths relative to a root folder.
Optional columns are ``name``, ``label``, ``flow``, ``modality``, ``group`` (the patient) and ``split`` (train, val or
test). Capitals do not matter in the names of columns, modalities and splits.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PureWindowsPath

import pandas as pd

from utils.files import FileError, lacking

MODALITIES = ("CT", "PET", "SPECT")
SPLITS = ("train", "val", "test")
FILES = ("fixed", "moving", "label", "flow")
"""Columns of a table that name files. The last two are optional."""

PAIR_COLUMNS = ("name", *FILES, "modality", "group", "split")
"""All columns that this project reads. Other columns are left as they are."""

LONGEST_NAME = 200
"""Largest number of bytes of a pair's name. File systems take 255, and endings need some of them."""

_CHOICES = {"modality": MODALITIES, "split": SPLITS}

_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class DataError(FileError):
    """A table of pairs cannot be made or used. The message is one line."""


def read_table(
    csv: str | os.PathLike,
    root: str | os.PathLike,
    *,
    modality: str | None = None,
    split: str | None = None,
    left_out: list[str] | None = None,
) -> pd.DataFrame:
    """Read a table of pairs and check it.

    Args:
        csv: CSV file with the columns ``fixed, moving [, name, label, flow, modality, group, split]``.
        root: folder that the paths of the table start from.
        modality: keep only rows of this modality. A table without the column is taken to be of it. None or
            "all" keeps all.
        split: keep only rows of this split (needs the column). None keeps all.
        left_out: list that gets one line for each unusable row. None raises an error instead.

    Returns:
        The columns as strings, paths relative to ``root``, and ``name``, by default the stem of ``fixed``.

    Raises:
        DataError: the file is missing or no CSV file; a column is missing; there are no rows; a modality or split is
            unknown; a cell is empty; two rows of one modality share a name; a name cannot be a file name; a path leaves
            the root or leads to no file. The message names the file and the line.
    """
    table = read_csv(csv, ("fixed", "moving"))
    columns = [column for column in PAIR_COLUMNS if column in table]
    for column in [column for column in FILES if column in table]:
        table[column] = [_with_slashes(value, root) for value in table[column]]
    for column in _CHOICES.keys() & set(table):
        table[column] = [as_choice(value, column) for value in table[column]]
    modality = None if modality == "all" else modality
    if modality is not None and "modality" not in table:
        table["modality"] = modality
    table = _usable(csv, table, lambda line, row: _check_kind(csv, line, row), left_out)
    for column, choice in (("modality", modality), ("split", split)):
        if choice is None:
            continue
        if column not in table:
            raise DataError.at(csv, f"a column {column} to choose {choice} by", f"columns {', '.join(table.columns)}")
        values = ", ".join(sorted(set(table[column])))
        table = table[table[column] == choice]
        if table.empty:
            raise DataError.at(csv, f"rows of {column} {choice}", f"only {values}")
    table = with_names(table)
    seen: dict[tuple[str, str], int] = {}

    def check(line: int, row: dict[str, str]) -> None:
        _check_cells(csv, line, {column: row[column] for column in columns}, root)
        if seen.setdefault((row.get("modality"), row["name"]), line) != line:
            expected = "one row a name (a column name gives others than those of the fixed files)"
            first = seen[row.get("modality"), row["name"]]
            raise DataError.at(csv, expected, f"{row['name']!r} in lines {first} and {line}")

    return _usable(csv, table, check, left_out).reset_index(drop=True)


def lacking_in_name(name: str) -> str | None:
    """Say what is expected of the name of a pair that cannot be that of result files everywhere; None where it can."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "a name in UTF-8"
    if len(encoded) > LONGEST_NAME:
        return f"a name of at most {LONGEST_NAME} bytes"
    if re.fullmatch(r"(con|prn|aux|nul|con(in|out)\$|(com|lpt)[\d¹²³]) *(\..*)?", name, flags=re.IGNORECASE):
        return "a name that Windows does not keep for devices"
    if re.search(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", name):
        return "a name without characters that control the line"
    return None


def with_names(table: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``name`` with the stems of the fixed images, unless the table has one."""
    return table if "name" in table else table.assign(name=[Path(path).stem for path in table["fixed"]])


def modality_of(kinds: Sequence[str]) -> str | None:
    """Return the modality that a checkpoint for these pairs needs: one, "all" for several, None without pairs."""
    return "all" if len(kinds) > 1 else next(iter(kinds), None)


def _usable(
    csv: str | os.PathLike,
    table: pd.DataFrame,
    check: Callable[[int, dict[str, str]], None],
    left_out: list[str] | None,
) -> pd.DataFrame:
    """Keep the rows that pass `check`. Others raise its error, or go to `left_out`.

    Raises:
        DataError: as `check`, or no row is left.
    """
    unusable = []
    for line, row in zip(table.index, table.to_dict("records"), strict=True):
        try:
            check(line, row)
        except DataError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
            unusable.append(line)
    if len(unusable) == len(table):
        raise DataError.at(csv, "at least one row that can be used", f"none; the last one: {left_out[-1]}")
    return table.drop(index=unusable)


def read_csv(path: str | os.PathLike, needed: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV file as strings, indexed by line number (if no cell spans lines), and check its columns.

    Raises:
        DataError: it cannot be read, is no table in UTF-8, has no rows or lacks a column of `needed`.
    """
    if not os.path.isfile(path):
        raise DataError.at(path, "a CSV file", f"{lacking(path)}")
    form = {"dtype": str, "keep_default_na": False, "index_col": False, "encoding": "utf-8-sig",
            "skipinitialspace": True, "skip_blank_lines": False}  # fmt: skip
    try:
        # The header comes first, because without one pandas' errors about the rows mislead. It is read as a row of
        # cells, because pandas numbers names that occur twice.
        header = pd.read_csv(path, nrows=1, header=None, **form)
        columns = _columns(path, header.fillna("").iloc[0] if len(header) else [], needed)
        with warnings.catch_warnings():
            # With index_col=False pandas drops extra cells with a warning only.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, **form)
    except DataError:
        raise
    except pd.errors.EmptyDataError as error:
        raise DataError.at(path, f"a CSV file with columns {', '.join(needed)}", "an empty file") from error
    except pd.errors.ParserWarning as error:
        raise DataError.at(path, f"a CSV file with {len(columns)} cells a row, as in line 1", "more") from error
    except UnicodeDecodeError as error:
        raise DataError.at(path, "a CSV file in UTF-8 (of Excel: CSV UTF-8)", "another encoding") from error
    except (OSError, ValueError) as error:
        # pandas' ParserError is a ValueError.
        if quote := re.search(r"EOF inside string starting at row (\d+)", str(error)):
            state = f"one in line {int(quote[1]) + 1} that is not"
            raise DataError.at(path, "quotes that are closed", state) from error
        raise DataError.at(path, "a CSV file (UTF-8, commas)", str(error)) from error
    table.columns = [name if name in PAIR_COLUMNS else own for name, own in zip(columns, table, strict=True)]
    table = table.fillna("")
    table.index += 2
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise DataError.at(path, "at least one row", "only the header")
    return table


def as_choice(value: str, column: str) -> str:
    """Return a modality or split in this project's spelling, whatever its capitals."""
    return next((choice for choice in _CHOICES[column] if choice.lower() == value.lower()), value)


def check_choice(csv: str | os.PathLike, line: int, column: str, value: str) -> None:
    """Check a value of the column modality or split.

    Raises:
        DataError: the value is unknown.
    """
    if value not in _CHOICES[column]:
        raise DataError.at(csv, f"one of {', '.join(_CHOICES[column])} as {column} in line {line}", repr(value))


def _columns(path: str | os.PathLike, header: Iterable[str], needed: tuple[str, ...]) -> list[str]:
    """Return the names in a header, known ones without spaces and capitals, and check that the needed ones exist."""
    columns = [name.strip().lower() if name.strip().lower() in PAIR_COLUMNS else name for name in header]
    missing = [column for column in needed if column not in columns]
    if missing:
        text = ", ".join(map(str, columns))
        hint = next((f"; is it separated by {kind}?" for sign, kind in _SEPARATORS.items() if sign in text), "")
        expected = f"columns {', '.join(needed)} in line 1, separated by commas"
        raise DataError.at(path, expected, f"no {', '.join(missing)} among {text}{hint}")
    twice = [column for column in PAIR_COLUMNS if columns.count(column) > 1]
    if twice:
        raise DataError.at(path, "each column once in line 1", f"{twice[0]} twice")
    return columns


def _check_kind(csv: str | os.PathLike, line: int, row: dict[str, str]) -> None:
    for column in [column for column in _CHOICES if column in row]:
        if not row[column].strip():
            raise _empty_cell(csv, line, column)
        check_choice(csv, line, column, row[column])


def _check_cells(csv: str | os.PathLike, line: int, cells: dict[str, str], root: str | os.PathLike) -> None:
    for column, value in cells.items():
        if not value.strip():
            raise _empty_cell(csv, line, column)
        if column in FILES:
            _check_path(csv, line, value, root)
        if column == "name" and not re.fullmatch(r"[^/\\:*?\"<>|\x00-\x1f.][^/\\:*?\"<>|\x00-\x1f]*", value):
            raise DataError.at(csv, f"a name for files in line {line}", repr(value))
        if column == "name" and (expected := lacking_in_name(value)):
            raise DataError.at(csv, f"{expected} in line {line}", repr(value))


def _empty_cell(csv: str | os.PathLike, line: int, column: str) -> DataError:
    return DataError.at(csv, f"a value in column {column} in line {line}", "an empty cell")


def _with_slashes(value: str, root: str | os.PathLike) -> str:
    """Replace the backslashes of a Windows path, unless a file of that very name exists."""
    if "\\" not in value:
        return value
    plain = value.replace("\\", "/")
    as_written, with_slashes = (os.path.exists(os.path.join(root, path)) for path in (value, plain))
    return plain if with_slashes and not as_written else value


def _check_path(csv: str | os.PathLike, line: int, value: str, root: str | os.PathLike) -> None:
    # A Windows path knows both kinds of slash and drive letters, on every machine.
    path = PureWindowsPath(value)
    if path.anchor or ".." in path.parts:
        raise DataError.at(csv, f"a path inside the root in line {line}, relative to it (--root DIR)", repr(value))
    file = os.path.join(root, value)
    if not os.path.isfile(file):
        state = "nothing" if not os.path.lexists(file) else lacking(file)
        raise DataError.at(csv, f"a file in line {line}", f"{state} at {file!r}")


def modality_name(text: str) -> str:
    """Parse a modality or "all", whatever its capitals. Other words stay as they are."""
    return "all" if text.lower() == "all" else as_choice(text, "modality")


def split_name(text: str) -> str:
    """Parse a split, whatever its capitals. Other words stay as they are."""
    return as_choice(text, "split")
