"""utils/device.py: the device asked for or a clear error, and memory that stays with the process."""

import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from utils.device import choose_device, loading_processes


def test_cpu_is_always_there_and_auto_finds_something():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")


def test_missing_device_is_a_clear_error():
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ValueError, match=rf"device: expected one that is here \(.*cpu\), found {absent}"):
        choose_device(absent)


@pytest.mark.parametrize(
    ("device", "cores", "together", "expected"),
    [
        ("cpu", 64, 1, 0),
        ("cuda", 64, 1, 8),
        ("cuda", 8, 1, 6),
        ("cuda", 16, 4, 2),
        ("mps", 2, 1, 1),
        ("cuda", 1, 1, 1),
    ],
)
def test_a_gpu_has_its_pairs_made_beside_it(monkeypatch, device, cores, together, expected):
    monkeypatch.setattr("utils.device.available_cores", lambda: cores)
    monkeypatch.setattr("utils.device.SHARED_MEMORY", "not/here")
    assert loading_processes(torch.device(device), together) == expected


@pytest.mark.parametrize(("size", "together", "expected"), [(2**26, 1, 4), (2**26, 2, 2), (2**26, 8, 1), (2**30, 1, 8)])
def test_they_fit_into_the_memory_that_processes_share(monkeypatch, tmp_path, size, together, expected):
    monkeypatch.setattr("utils.device.available_cores", lambda: 128)
    monkeypatch.setattr("utils.device.SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", {str(tmp_path): SimpleNamespace(total=size)}.get)
    assert loading_processes(torch.device("cuda"), together) == expected


def test_memory_is_kept_for_the_next_tensors(monkeypatch):
    calls, answers = [], []
    real = None if sys.platform == "win32" else getattr(ctypes.CDLL(None), "mallopt", None)

    def mallopt(parameter: int, value: int) -> None:
        calls.append((parameter, value))
        answers.append(real(parameter, value) if real else 1)

    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    choose_device("cpu")
    # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; 1 is that glibc takes the value.
    assert calls == [(-1, 2**31 - 1), (-3, 32 * 2**20)] and answers == [1, 1]


def test_without_glibc_there_is_a_device_all_the_same(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: SimpleNamespace())
    assert choose_device("cpu") == torch.device("cpu")

    def refuse(name: None) -> None:
        raise TypeError("Windows has no library without a name")

    monkeypatch.setattr("ctypes.CDLL", refuse)
    assert choose_device("cpu") == torch.device("cpu")
