"""The project's one way to write and remove a file and to list a folder; what is not to be written over; the error that
names the path at fault.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

ATTEMPTS = 20 if os.name == "nt" else 1
"""How often a file is tried to be replaced or removed, 0.1 s apart: Windows refuses while a viewer holds it."""


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a full disk, a used-up quota, and shared memory (/dev/shm) in which no process can be started."""


class InputError(ValueError):
    """What a user can mend. Commands say the message, one line, and exit with 2; other errors are the project's own."""


class MachineError(InputError):
    """What the machine lacks for the work, such as memory, while the input is good. Commands exit with 1."""


class FileError(InputError):
    """A file or folder that cannot be used or written. The message is one line."""

    @classmethod
    def at(cls, path: str | os.PathLike, expected: str, found: str) -> "FileError":
        """Make the error in the project's form: ``PATH: expected EXPECTED, found FOUND``."""
        line = re.sub(r"\s*[\r\n]+\s*", " ", f"{os.fspath(path)}: expected {expected}, found {found}")
        # Names in another encoding cannot be written as they are.
        return cls(line.encode(errors="replace").decode())


class FullDiskError(FileError, MachineError):
    """A file that could not be written as its disk is full or a quota is used up."""


def entries(folder: str | os.PathLike) -> list[Path]:
    """List what is directly in a folder, without hidden files.

    Raises:
        FileError: the folder cannot be read.
    """
    try:
        return [path for path in Path(folder).iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise FileError.at(folder, "a folder that can be read", error.strerror or str(error)) from error


def lacking(path: str | os.PathLike) -> str | None:
    """Say why a file has no content to read; None where it has.

    Without content are links to nothing, files that cannot be opened, empty ones, and what git-annex, DataLad and
    Git LFS leave in the place of a file that was not fetched.
    """
    fetch = "whose content is not here (git annex get, or datalad get)"
    # os.path takes impossible names (too long, with a zero byte) for missing files, where pathlib raises.
    if not os.path.exists(path):
        if not os.path.islink(path):
            return "nothing there"
        target = os.readlink(path)
        return f"a file of git-annex {fetch}" if ".git/annex" in target else f"a link to nothing ({target})"
    if not os.path.isfile(path):
        return "a folder" if os.path.isdir(path) else "no regular file"
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except OSError as error:
        return error.strerror or str(error)
    if head.startswith(b"version https://git-lfs"):
        return "a file of Git LFS whose content is not here (git lfs pull)"
    if head.lstrip(b"./\\").startswith((b"annex/objects/", b"git/annex/objects/")):
        return f"a file of git-annex {fetch}"
    if not any(head):
        return "an empty file (0 bytes)" if not head else "zero bytes where the file should begin"
    return None


def check_inputs_stay(
    inputs: Iterable[str | os.PathLike], outputs: Iterable[str | os.PathLike], option: str = "--output DIR"
) -> None:
    """Check, before anything is written, that no result would take the place of a file that it is made from.

    Args:
        inputs, outputs: files that are read, and that are to be written.
        option: of the command, to choose other outputs by.

    Raises:
        FileError: one would, by whatever link or spelling of the path.
    """
    written = {mark for path in outputs for mark in _marks(path)}
    for path in inputs:
        if not written.isdisjoint(_marks(path)):
            expected = f"an input that no result is written over ({option})"
            raise FileError.at(path, expected, "the place of a result")


def _marks(path: str | os.PathLike) -> Iterator[str | tuple]:
    """Yield marks that identify a file: its path without links and, if it exists, its number whatever its capitals.

    Where capitals make no difference, one file has several such paths. A hard link of it is another file: what is
    written takes the place of one of them only.
    """
    real = os.path.realpath(path)
    yield real
    with suppress(OSError):
        file, folder = os.stat(real), os.stat(os.path.dirname(real))
        if file.st_ino:  # some network drives know no numbers
            yield file.st_dev, file.st_ino, folder.st_ino, os.path.basename(real).casefold()


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Write a file atomically: a temporary file beside it takes its place once it is complete and on the disk.

    Raises:
        FileError: the system refused (no permission, a folder in the way); an earlier file is left alone.
        FullDiskError: there is no room; an earlier file is left alone.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            _patiently(lambda: os.replace(temporary, path))
            _flush_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        kind = FullDiskError if error.errno in FULL else FileError
        raise kind.at(path, "a place to write to", error.strerror or str(error)) from error


def _flush_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk, where the system can."""
    with suppress(OSError):  # Windows opens no folders, and some network drives do not flush them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


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

    Raises:
        FileError: one of them cannot be removed.
    """
    for path in Path(folder).rglob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            remove(path)


def _patiently(change: Callable[[], None]) -> None:
    for left in reversed(range(ATTEMPTS)):
        try:
            change()
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(0.1)
