"""The processes that torchrun has started, and what the test command says and waits for in several of them.

Nothing here imports torch at once: the processes that score start the faster for it.
"""

import multiprocessing
import multiprocessing.queues
import os
import signal
import traceback
from datetime import timedelta
from typing import TYPE_CHECKING

from utils.files import InputError, MachineError
from utils.signals import leave_signals_to_parent

if TYPE_CHECKING:
    import torch


NO_ROOM = 28
"""Exit status of a loading process for whose batch the shared memory has no room: Linux's number of that error."""


def rank() -> int:
    """Return the number of this process among all, from 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """Return the number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return the number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def part() -> int | None:
    """Return the number of the part of the results that this process writes; None if it writes all."""
    return rank() if world() > 1 else None


def begin_group(backend: str, timeout: timedelta, device: "torch.device | None" = None) -> None:
    """Make several processes one group.

    Args:
        backend: gloo, or nccl with the GPU of this process as `device`.
        timeout: how long they wait for each other at most.

    Raises:
        InputError: what torchrun tells them is not there.
    """
    import torch.distributed as dist

    try:
        dist.init_process_group(backend, timeout=timeout, device_id=device)
    except ValueError as error:
        raise InputError(f"{world()} processes: expected to be started by torchrun, found: {error}") from error


def join() -> None:
    """Join several processes to one group, and wait for all of them."""
    if world() > 1:
        # They wait for each other after the last pair, however long that takes.
        begin_group("gloo", timedelta(days=7))
    wait_for_others()


def wait_for_others() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        import torch.distributed as dist

        dist.barrier()


def available_cores() -> int:
    """Count the cores that this process may run on, at least 1.

    A container, a batch system or ``taskset`` may leave it fewer than the machine has; where the system does not tell,
    those of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def idle_cores() -> int:
    """Estimate how many of this process's cores nobody uses, at least 1.

    Threads that share a core with another program's wait for each other at every operation: two threads on one free
    core can take ten times as long as one.
    """
    cores = available_cores()
    if not hasattr(os, "getloadavg"):
        return cores
    busy = min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    return max(1, round(cores * (1 - busy)))


def check_shared_memory(alternative: str) -> None:
    """Check, before processes are started, that the system has room for what they share.

    Args:
        alternative: option by which the work needs no further processes.

    Raises:
        MachineError: it has none.
    """
    try:
        multiprocessing.get_context("spawn").Lock()
    except OSError as error:
        expected = "a system that processes can share memory in (/dev/shm)"
        state = f"{error.strerror}; {alternative} needs none"
        raise MachineError(f"--workers: expected {expected}, found {state}") from error


def begin_loading(worker: int) -> None:
    """Prepare a worker of a DataLoader (`worker_init_fn`): it leaves signals to its parent, and ends where it must.

    Where a batch cannot be handed over, as /dev/shm is full, Python prints that and goes on: the parent would wait for
    the batch forever.
    """
    leave_signals_to_parent(worker)

    def end(error: Exception, batch: object) -> None:
        if "shared memory" in str(error):
            os._exit(NO_ROOM)
        traceback.print_exception(error)
        os._exit(1)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end)


def kill_children() -> None:
    """End the processes that this one has started and that still run."""
    children = multiprocessing.active_children()
    if children and hasattr(signal, "SIGCHLD"):
        # PyTorch would raise an error for a loading process that is killed.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in children:
        child.kill()


def pool_size(count: int) -> int:
    """Limit the wanted processes to the largest pool: Windows waits for no more than 61."""
    return min(count, 61) if os.name == "nt" else count
