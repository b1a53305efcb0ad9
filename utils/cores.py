"""How many processor cores this process may use."""

import os


def available_cores() -> int:
    """Cores that this process may run on, at least 1.

    A container, a batch system or ``taskset`` may leave it fewer than the machine has; where the system does not tell,
    those of the machine.
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pool_size(wanted: int) -> int:
    """`wanted` processes, or as many as a pool can have: Windows waits for no more than 61."""
    return min(wanted, 61) if os.name == "nt" else wanted
