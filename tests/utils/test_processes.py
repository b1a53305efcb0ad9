"""utils/processes.py: a system without room for processes is named before any is started."""

import errno
import multiprocessing

import pytest

from utils.files import InputError
from utils.processes import check_shared_memory


def test_full_shared_memory_is_named_with_the_option_that_needs_none(monkeypatch):
    check_shared_memory("--workers 0")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Lock", full, raising=False)
    with pytest.raises(InputError, match=r"--workers: .*, found No space left on device; --workers 0 needs none"):
        check_shared_memory("--workers 0")
