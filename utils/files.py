"""The project's one way to write and remove a file and to list a folder, and the error that names the path at fault."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

ATTEMPTS = 20 if os.name == "nt" else 1
"""How often a file is tried to be replaced or removed, 0.1 s apart: Windows refuses while a viewer holds it."""


class FileError(ValueError):
    """A file or folder that cannot be used or written. The message is one line."""

    @classmethod
    def at(cls, path: str | os.PathLike, expected: str, found: str) -> "FileError":
        """The error in the project's form: ``PATH: expected EXPECTED, found FOUND``."""
        return cls(re.sub(r"\s*[\r\n]+\s*", " ", f"{os.fspath(path)}: expected {expected}, found {found}"))


def entries(folder: str | os.PathLike) -> list[Path]:
    """What is directly in a folder, without hidden files.

    Raises:
        FileError: the folder cannot be read.
    """
    try:
        return [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise FileError.at(folder, "a folder that can be read", error.strerror or str(error)) from error


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically: a temporary file beside it takes its place once it is complete.

    Raises:
        FileError: the system refused (no permission, disk full, a folder in the way); an earlier file is left alone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            _patiently(lambda: os.replace(temporary, path))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileError.at(path, "a place to write to", error.strerror or str(error)) from error


def remove(path: Path) -> None:
    """Remove a file, if it is there.

    Raises:
        FileError: the system refused (no permission, a folder of that name).
    """
    try:
        _patiently(lambda: path.unlink(missing_ok=True))
    except OSError as error:
        raise FileError.at(path, "a file that can be removed", error.strerror or str(error)) from error


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Remove what processes that were killed while they wrote have left in a folder and below it.

    Nothing else may be writing there: the temporary files of `write_bytes` are taken for such remains.
    """
    for path in Path(folder).rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _patiently(change: Callable[[], None]) -> None:
    for left in reversed(range(ATTEMPTS)):
        try:
            change()
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(0.1)
