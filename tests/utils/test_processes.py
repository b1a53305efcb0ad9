"""utils/processes.py: a system without room for processes is named before any is started, or ends the work."""

import errno
import multiprocessing

import pytest
from torch.utils.data import DataLoader, Dataset

from utils.device import memory_advice
from utils.files import MachineError
from utils.processes import begin_loading, check_shared_memory


def test_full_shared_memory_is_named_with_the_option_that_needs_none(monkeypatch):
    check_shared_memory("--workers 0")

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing.get_context("spawn"), "Lock", full, raising=False)
    with pytest.raises(MachineError, match=r"--workers: .*, found No space left on device; --workers 0 needs none"):
        check_shared_memory("--workers 0")


class _TooLarge:
    """A batch that finds no room in the shared memory."""

    def __reduce__(self) -> tuple:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


class _Batches(Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> _TooLarge:
        return _TooLarge()


def test_a_batch_that_cannot_be_handed_over_ends_the_work_instead_of_hanging():
    loader = DataLoader(_Batches(), batch_size=None, num_workers=1, worker_init_fn=begin_loading, timeout=60)
    with pytest.raises(RuntimeError, match="exited unexpectedly") as caught:
        next(iter(loader))
    assert "shared memory" in memory_advice(caught.value)
