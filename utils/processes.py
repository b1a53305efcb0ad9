"""The processes that torchrun has started, and what the test command says and waits for in several of them.

Nothing here imports torch at once: the processes that score start the faster for it.
"""

import os
import sys
from datetime import timedelta

PROGRAM = "EDARFusion_test_val"


def rank() -> int:
    """Number of this process among all, from 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are, on all machines."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process on its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world() -> int:
    """How many processes there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def part() -> int | None:
    """Number of the part of the results that this process writes; None where it writes all."""
    return rank() if world() > 1 else None


def say(what: str) -> None:
    """What is no error but should be known; once, however many processes there are."""
    if rank() == 0:
        print(f"{PROGRAM}: {what}", file=sys.stderr)


def join() -> None:
    """Several processes become one group, and wait until all are here."""
    if world() > 1:
        import torch.distributed as dist

        # They wait for each other after the last pair, however long that takes.
        dist.init_process_group("gloo", timeout=timedelta(days=7))
    wait_for_others()


def wait_for_others() -> None:
    """Wait until all processes are here."""
    if world() > 1:
        import torch.distributed as dist

        dist.barrier()
