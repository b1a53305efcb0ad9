"""utils/command.py: the exit status and the one line with which a command ends."""

import errno

import pytest

from utils.command import run_command
from utils.files import FileError, MachineError, write_bytes
from utils.signals import INTERRUPTED


def ending_with(error: BaseException):
    def work() -> None:
        raise error

    return work


def test_the_status_of_the_work_is_that_of_the_command(capsys):
    assert run_command("tool", lambda: None) == 0
    assert run_command("tool", lambda status: status, 1) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (FileError.at("a.png", "an image", "none"), 2, "tool: a.png: expected an image, found none\n"),
        (MachineError("--workers: expected room, found none"), 1, "tool: --workers: expected room, found none\n"),
        (KeyboardInterrupt(), INTERRUPTED, "tool: interrupted; go on\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/full/a.npy"),
            1,
            "tool: /full/a.npy: expected room to write, found No space left on device\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device"),  # of a semaphore
            1,
            "tool: the output, the temporary folder or /dev/shm (shared memory of processes): "
            "expected room to write, found No space left on device\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line(error, status, line, capsys):
    assert run_command("tool", ending_with(error), hint="; go on") == status
    assert capsys.readouterr().err == line


def test_the_project_s_own_errors_are_not_hidden():
    for error in (RuntimeError("bug"), OSError(errno.ENOENT, "no such file")):
        with pytest.raises(type(error)):
            run_command("tool", ending_with(error))


def test_a_full_disk_is_status_1_and_leaves_the_earlier_file_whole(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.csv"
    write_bytes(path, b"earlier")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert run_command("tool", write_bytes, path, b"later") == 1
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"tool: {path}: expected") and line.endswith("No space left on device")
