"""The processes that share a run of the test command: which one this is, and what they say and wait for together."""

import os
import sys

PROGRAM = "EDARFusion_test_val"

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
"""Number of this process and how many there are, as torchrun gives them."""


def part() -> int | None:
    """Number of the part of the results that this process writes; None where it writes all."""
    return RANK if WORLD > 1 else None


def say(what: str) -> None:
    """What is no error but should be known; once, however many processes there are."""
    if RANK == 0:
        print(f"{PROGRAM}: {what}", file=sys.stderr)


def wait_for_others() -> None:
    """Until all processes are here."""
    if WORLD > 1:
        import torch.distributed as dist

        dist.barrier()
