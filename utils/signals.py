"""Ctrl-C and SIGTERM as a wish that is granted at the next good moment."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a command that Ctrl-C ended, as shells have it."""


def leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C and SIGTERM do not end this process: for `worker_init_fn` of a DataLoader, whose parent saves first.

    Without it the parent finds that a worker was killed, and fails before it has saved.
    """
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


@contextmanager
def stop_on_signal(second_breaks_in: bool) -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event instead of breaking in anywhere.

    Args:
        second_breaks_in: a second one raises KeyboardInterrupt. Not under torchrun, which may pass Ctrl-C on to
            processes that have it from the terminal already.
    """
    stop = threading.Event()

    def request(*_: object) -> None:
        if stop.is_set() and second_breaks_in:
            raise KeyboardInterrupt
        stop.set()

    before = {kind: signal.signal(kind, request) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)
