"""The processes that train together: which device each has, how they become a group, what they agree on."""

from datetime import timedelta

import torch
import torch.distributed as dist

from utils.device import choose_device
from utils.files import InputError
from utils.processes import begin_group, local_rank, local_world


def own_device(name: str, world: int) -> torch.device:
    """Choose the device called `name` on which this one of `world` processes computes.

    Raises:
        InputError: it is not there, cannot be shared, or there are more processes on this machine than GPUs.
    """
    device = choose_device(name, local_rank())
    if world > 1 and device.type == "mps":
        raise InputError("--device: expected cpu or cuda for several processes, found mps")
    together = local_world()
    # A process that sees a single GPU may have been given one of its own.
    if device.type == "cuda" and dist.is_nccl_available() and together > torch.cuda.device_count() > 1:
        expected = f"at most {torch.cuda.device_count()} processes here, one for each GPU (torchrun --nproc_per_node)"
        raise InputError(f"--device: expected {expected}, found {together}")
    return device


def join_processes(device: torch.device, world: int) -> None:
    """Join several processes to one group.

    Raises:
        InputError: what torchrun tells them is not there.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world > 1:
        # Only one process validates; the others wait for it.
        # Windows has no NCCL.
        backend, own = ("nccl", device) if device.type == "cuda" and dist.is_nccl_available() else ("gloo", None)
        begin_group(backend, timedelta(hours=2), own)


def agree(progress: float, stopping: bool, device: torch.device, world: int) -> tuple[float, bool]:
    """Return the furthest progress among all processes, and whether any of them must stop."""
    if world > 1:
        # In double precision, as a single process computes: a share that is rounded would end a stage a step later.
        flags = torch.tensor([progress, float(stopping)], dtype=torch.float64, device=device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        progress, stopping = flags[0].item(), bool(flags[1].item())
    return progress, stopping
