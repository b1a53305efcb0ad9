"""utils/device.py: the device asked for or a clear error, and memory that stays with the process."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.device import choose_device, loading_processes

PAGE_FAULTS = """
import resource, statistics, sys, torch
from models.edarfusion import EDARFusion
from utils.device import choose_device
if sys.argv[1] == "chosen":
    choose_device("cpu")
model, image = EDARFusion("tiny").eval(), torch.rand(2, 1, 256, 256)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.inference_mode():
        model(image, image)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(int(statistics.median([faults() for _ in range(12)][4:])))  # single calls vary, with threads above all
"""


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
        ("cuda", None, 1, 1),
    ],
)
def test_a_gpu_has_its_pairs_made_beside_it(monkeypatch, device, cores, together, expected):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert loading_processes(torch.device(device), together) == expected


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_memory_is_kept_for_the_next_tensors():
    def faults(state: str) -> int:
        line = [sys.executable, "-c", PAGE_FAULTS, state]
        root = Path(__file__).parents[1]
        return int(subprocess.run(line, cwd=root, capture_output=True, text=True, check=True).stdout)

    # Threads and large pages change the counts from machine to machine; where memory is kept anyway both are few.
    assert faults("chosen") < max(faults("as it was") / 2, 100)
