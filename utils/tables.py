"""The project's one way to write a table."""

import os

import pandas as pd

from utils.files import write_bytes


def write_table(path: str | os.PathLike, table: pd.DataFrame, digits: str | None = None) -> None:
    """Write a table as CSV without its index, whole or not at all, with the same line ends under every system.

    Args:
        path: file to write.
        table: its column names become the first line.
        digits: format of numbers, such as "%.6g"; by default all digits.

    Raises:
        FileError: the file cannot be written.
    """
    write_bytes(path, table.to_csv(index=False, lineterminator="\n", float_format=digits).encode())
