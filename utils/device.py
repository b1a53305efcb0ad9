"""Choice of the device by name, and of how many processes load what it works on."""

import ctypes
import os
import shutil
from collections.abc import Sequence

import torch
from torch import Tensor

from utils.files import InputError
from utils.processes import NO_ROOM, available_cores, idle_cores, local_world

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps what processes hand each other."""


def keep_memory() -> None:
    """Make the C library keep freed memory for the next tensors instead of returning it to the system.

    Otherwise every pass over a network on the CPU fetches the same pages anew, which takes a third of its time. The
    process never needs more than at its peak. Without glibc nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 32 * 2**20)  # the largest that glibc takes


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Choose the device called `name`. On a CPU the process keeps its memory.

    Args:
        name: auto, cpu, cuda or mps; auto takes the first accelerator that is there.
        local_rank: number of this process on its machine, which picks among several GPUs.

    Raises:
        InputError: no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if not available.get(name):
        kinds = ", ".join(kind for kind, present in available.items() if present)
        raise InputError(f"--device: expected one that is here ({kinds}), found {name}")
    if name == "cpu":
        keep_memory()
    return torch.device("cuda", local_rank % torch.cuda.device_count()) if name == "cuda" else torch.device(name)


def choose_threads(device: torch.device, count: int | None) -> None:
    """Set how many threads this process computes with on a CPU.

    Args:
        device: where the network computes; beside an accelerator nothing changes.
        count: number of threads; None leaves OMP_NUM_THREADS in force or takes this process's share of idle cores.
    """
    if count is None and device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        count = max(1, idle_cores() // local_world())
    if count:
        torch.set_num_threads(count)


def prefer_speed(device: torch.device) -> None:
    """Choose fast operators: on a CPU those that repeat to the bit, on CUDA those with 10 of a float32's 23 bits."""
    # An accelerator has no deterministic form of some operators: there it would only cost time.
    torch.use_deterministic_algorithms(device.type == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def moved_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copy tensors (B, ...) of one type from the CPU to a device in one piece, as each copy costs a wait."""
    if device.type == "cpu":
        return list(tensors)
    together = torch.cat([tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors], dim=1)
    if device.type == "cuda":
        together = together.pin_memory()
    parts = together.to(device, non_blocking=device.type == "cuda").split([x[0].numel() for x in tensors], dim=1)
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def memory_advice(error: BaseException) -> str | None:
    """Advise what to try after an error of lacking memory; None for other errors."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory on the GPU: try a smaller --batch-size, --amp or a smaller --preset ({text[:120]})"
    no_room = f"exit code {NO_ROOM}." in text
    if no_room or "bus error" in text.lower() or "shared memory" in text.lower():
        return (
            "out of shared memory for the processes that prepare the pairs: try fewer --workers, or more of it "
            f"(docker run --shm-size 1g) ({text[:120]})"
        )
    if "DataLoader worker" in text:
        return (
            "a process that prepares the pairs ended early: out of memory, or of shared memory (/dev/shm)? "
            f"Try fewer --workers ({text[:120]})"
        )
    if isinstance(error, MemoryError) or "allocate memory" in text or "not enough memory" in text:
        return f"out of memory: try a smaller --batch-size or fewer --workers ({text[:120]})"
    return None


def loading_processes(device: torch.device, together: int = 1) -> int:
    """Choose the number of processes that make the training pairs.

    On a CPU none: they would take their time from the training itself. A GPU would wait for a single one; two cores
    stay free, for this process and for those who use the machine.

    Args:
        device: where the training runs.
        together: training processes on this machine, which share its cores.

    Returns:
        From 0 to 8.
    """
    if device.type == "cpu":
        return 0
    most = 8
    if os.name == "nt":
        most = 2  # each loads CUDA's libraries, for which Windows sets gigabytes aside
    elif os.path.isdir(SHARED_MEMORY) and shutil.disk_usage(SHARED_MEMORY).total < 2**28:
        most = 4 // together  # a container's 64 MiB hold the 13 MiB of four of them
    return max(1, min(most, available_cores() // together - 2))
